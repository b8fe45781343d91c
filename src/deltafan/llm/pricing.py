"""What a completion cost: by the settings, a profile of the program's own, genai-prices' list, or a bundled profile."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from deltafan.events import Usage
from deltafan.llm import usage as counts
from deltafan.llm.price import Price
from deltafan.llm.profiles import listed
from deltafan.llm.profiles.lookup import overridden, own_profile_of, priced, profile_of
from deltafan.llm.settings import ModelSettings


def cost_usd(
    provider: str,
    model: str,
    usage: Usage,
    *,
    raw: Mapping[str, Any] | None = None,
    service_tier: str | None = None,
    models: Mapping[str, ModelSettings] | None = None,
) -> float | None:
    """US dollars. `None` if the model, a price that is needed or a token count is not known: unknown is not free.

    A price that the settings or a profile of the program's own name counts as it is. Else the list's counts, with its
    tiers for long prompts, and its own prices of service tiers, cache writes and audio.

    The first call loads the list, which takes about 0.4 s: call it in a thread.

    :param raw: the usage as the provider reported it, which tells of cache writes and audio.
    :param service_tier: as the provider named it in its answer, or as it was asked for.
    :param models: what the settings say of models.
    """
    if usage.prompt_tokens is None:
        return None
    completion = billed_output(usage)
    if completion is None:
        return None
    # More cached tokens than tokens make no sense; the list price of the whole prompt errs on the dear side.
    cached = usage.cached_tokens or 0
    cached = cached if cached <= usage.prompt_tokens else 0
    own = _own_price(provider, model, models or {})
    if own is not None:
        cost = own.cost(prompt=usage.prompt_tokens, cached=cached, completion=completion)
    else:
        cost = _list_cost(provider, model, usage.prompt_tokens, cached, completion, raw, service_tier)
    return None if cost is None else float(cost)


def billed_output(usage: Usage) -> int | None:
    """Output tokens, reasoning included.

    `completion_tokens` leave reasoning out with some providers (xAI, Gemini), and are missing for embeddings; the total
    holds everything.
    """
    rest = None
    if usage.total_tokens is not None and usage.prompt_tokens is not None:
        rest = usage.total_tokens - usage.prompt_tokens
    if usage.completion_tokens is None:
        return rest if rest is not None and rest >= 0 else None
    return max(usage.completion_tokens, rest or 0)


def _own_price(provider: str, model: str, models: Mapping[str, ModelSettings]) -> Price | None:
    """The price by the settings, what they leave out by the profile; else that of the program's own profile."""
    said = overridden(provider, model, models)
    if said is not None and priced(None, said) is not None:
        return profile_of(provider, model, models).price
    own = own_profile_of(provider, model)
    return own.price if own is not None else None


def _list_cost(
    provider: str,
    model: str,
    prompt: int,
    cached: int,
    completion: int,
    raw: Mapping[str, Any] | None,
    service_tier: str | None,
) -> Decimal | None:
    entry = listed.find(provider, model) or listed.find_by_prefix(provider, model)
    if entry is None:
        price = profile_of(provider, model).price
        return price.cost(prompt=prompt, cached=cached, completion=completion) if price else None
    basic = {"input_tokens": prompt, "cache_read_tokens": cached, "output_tokens": completion}
    for tokens in ({**basic, **counts.priced_apart(raw)}, basic):
        cost = listed.cost(entry, tokens, service_tier)
        if cost is not None:
            return cost
    return None
