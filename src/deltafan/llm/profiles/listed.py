"""genai-prices, which the package brings along: models by provider, and their prices. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from deltafan.llm.price import Price

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_NAMES: Final = {
    "anthropic": "anthropic",
    "azure": "azure",
    "cerebras": "cerebras",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "openai": "openai",
    "openrouter": "openrouter",
    "together": "together",
    "xai": "x-ai",
    "zai": "zai",
}
"""Our provider names to the list's. Not there: servers of one's own, and those whose prices the list does not have."""

_MAX_NAME: Final = 200
"""Characters of a model's name that is looked for. A name of a job may be anything."""


def find(provider: str, model: str) -> ModelInfo | None:
    """The list's entry for exactly this name, as the list's own rules match names.

    The first call loads the list, which takes about 0.4 s: make it in a thread.
    """
    if not 0 < len(model) <= _MAX_NAME:
        return None
    listed, name = _listed(provider, model)
    return listed.find_model(name, all_providers=_providers()) if listed is not None else None


def find_by_prefix(provider: str, model: str) -> ModelInfo | None:
    """The entry with the longest name that this one begins with."""
    listed, name = _listed(provider, model[:_MAX_NAME])
    if listed is None:
        return None
    nearby = [listed, *(p for p in _providers() if p.id in (listed.fallback_model_providers or ()))]
    known = [entry for place in nearby for entry in place.models if begins(name.lower(), entry.id.lower())]
    return max(known, key=lambda entry: len(entry.id), default=None)


def begins(model: str, name: str) -> bool:
    """Whether a model's name is this one, or this one and more: a snapshot (`gpt-4o-2024-11-20`), a variant.

    `gpt-4o` does not begin with `gpt-4`, nor `gpt-5.9` with `gpt-5`.
    """
    return model == name or (bool(name) and model.startswith(name) and model[len(name)] in "-:@")


def price_now(entry: ModelInfo, service_tier: str | None = None) -> ModelPrice:
    """The prices of this moment: some differ by date, or by the time of day."""
    return entry.get_prices(datetime.now(UTC), {"service_tier": service_tier} if service_tier else None)


def cost(entry: ModelInfo, tokens: Mapping[str, int], service_tier: str | None = None) -> Decimal | None:
    """US dollars for these token counts, by the names of genai-prices. `None` where a price that is needed is missing,
    or where the counts do not fit each other."""
    import genai_prices

    prices = price_now(entry, service_tier)
    for count, price in (("input_tokens", prices.input_mtok), ("output_tokens", prices.output_mtok)):
        if tokens[count] and price is None:
            return None
    try:
        return prices.calc_price(genai_prices.Usage(**tokens))["total_price"]
    except (LookupError, ValueError):
        return None


def base_price(entry: ModelInfo) -> Price | None:
    """The prices of short prompts now. `None` where the list has none."""
    prices = price_now(entry)
    found = [_base(getattr(prices, f"{kind}_mtok")) for kind in ("input", "output", "cache_read")]
    return None if found[0] is None and found[1] is None else Price(*found)


def _base(price: object) -> Decimal | None:
    value = getattr(price, "base", price)
    return value if isinstance(value, Decimal) else None


def _listed(provider: str, model: str) -> tuple[Provider | None, str]:
    """The list's provider, and the model's name there."""
    name = _NAMES.get(provider)
    if provider == "huggingface":
        # What a model costs there depends on who serves it, which only a suffix tells.
        model, _, served_by = model.partition(":")
        name = f"huggingface_{served_by}" if served_by else None
    return next((listed for listed in _providers() if listed.id == name), None), model


def _providers() -> list[Provider]:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot().providers
