"""What a completion cost, by genai-prices' list, which the package brings along. Nothing is fetched."""

from __future__ import annotations

from deltafan.events import Usage

_NAMES = {
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


def cost_usd(provider: str, model: str, usage: Usage) -> float | None:
    """US dollars, by list price. `None` if the provider, the model or a token count is not known: unknown is not free.

    The first call loads the list, which takes about 0.4 s: call it in a thread.
    """
    name = _NAMES.get(provider)
    if name is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    import genai_prices

    # More cached tokens than tokens would be refused; a list price for the whole prompt errs on the dear side.
    cached = usage.cached_tokens or 0
    tokens = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=cached if cached <= usage.prompt_tokens else 0,
        output_tokens=usage.completion_tokens,
    )
    try:
        return float(genai_prices.calc_price(tokens, model, provider_id=name).total_price)
    except (LookupError, ValueError):
        return None
