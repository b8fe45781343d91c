"""From a model's name to its profile."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from deltafan.llm.price import Price
from deltafan.llm.profile import BUNDLED, ModelProfile, own_profiles
from deltafan.llm.profiles import listed
from deltafan.llm.providers import split_model
from deltafan.llm.settings import LLMSettings, ModelSettings

_LIMITS: Final = (
    "context_window",
    "max_input",
    "max_output",
    "dimensions",
    "requests_per_minute",
    "tokens_per_minute",
)
_DATED: Final = re.compile(r"[-@]\d{4}-?\d{2}-?\d{2}")


def find_profile(model: str | ModelProfile | type[ModelProfile], settings: LLMSettings | None = None) -> ModelProfile:
    """The facts about a model: those of a profile of the program's own, of a bundled one, or of genai-prices, each by
    the exact name, then by the longest name that this one begins with; and over them, what the settings say.

    A model that nobody knows has a profile in which everything is unknown. The first call for a model without a
    profile loads genai-prices, which takes about 0.4 s: make it in a thread.

    :param model: a profile, its class, its key, or a name as `Request.model` takes it.
    """
    settings = settings or LLMSettings()
    if isinstance(model, type):
        model = model()
    if isinstance(model, ModelProfile):
        return _with(model, settings.models)
    provider, name = split_model(model, settings)
    return profile_of(provider, name, settings.models)


def profile_of(provider: str, name: str, models: Mapping[str, ModelSettings] | None = None) -> ModelProfile:
    """The same for a provider and its own name of the model."""
    return _with(own_profile_of(provider, name) or _known(provider, name), models or {})


def own_profile_of(provider: str, name: str) -> ModelProfile | None:
    """A profile that the program registered for this model, or for the longest name that this one begins with."""
    own = _longest((p for p in own_profiles() if p.provider == provider), name)
    if own is None or own.model == name:
        return own
    entry = listed.find(provider, name) or listed.find_by_prefix(provider, name)
    longer = entry is not None and len(entry.id) > len(own.model)
    return None if longer else replace(own, key=name, model=name)


def overridden(provider: str, name: str, models: Mapping[str, ModelSettings]) -> ModelSettings | None:
    """What the settings say of a model: under `provider/model`, or under its name alone; by the longest prefix."""
    for full in (f"{provider}/{name}", name):
        found = [key for key in models if listed.begins(full, key)]
        if found:
            return models[max(found, key=len)]
    return None


def priced(price: Price | None, said: ModelSettings) -> Price | None:
    """A price with what the settings say of it."""
    if said.input_price is None and said.output_price is None and said.cached_price is None:
        return price
    price = price or Price()
    return Price(
        price.input if said.input_price is None else said.input_price,
        price.output if said.output_price is None else said.output_price,
        price.cached if said.cached_price is None else said.cached_price,
    )


def _known(provider: str, name: str) -> ModelProfile:
    bundled = _longest((p for p in BUNDLED.values() if p.provider == provider), name)
    if bundled is not None and bundled.model == name:
        return bundled
    entry = None
    if bundled is None or not _DATED.fullmatch(name.removeprefix(bundled.model)):
        entry = listed.find(provider, name) or listed.find_by_prefix(provider, name)
        bundled = None if entry is not None and (bundled is None or entry.id != bundled.model) else bundled
    if bundled is not None:
        return replace(bundled, key=name, model=name)
    if entry is None:
        return _unknown(provider, name)
    return replace(_unknown(provider, name), context_window=entry.context_window, price=listed.base_price(entry))


def _longest(profiles: Iterable[ModelProfile], name: str) -> ModelProfile | None:
    return max((p for p in profiles if listed.begins(name, p.model)), key=lambda p: len(p.model), default=None)


def _unknown(provider: str, name: str) -> ModelProfile:
    return ModelProfile(provider=provider or "unknown", model=name or "unknown")


def _with(profile: ModelProfile, models: Mapping[str, ModelSettings]) -> ModelProfile:
    said = overridden(profile.provider, profile.model, models)
    if said is None:
        return profile
    limits = {name: value for name in _LIMITS if (value := getattr(said, name)) is not None}
    return replace(profile, **limits, price=priced(profile.price, said))
