"""How a model name chooses a provider."""

from __future__ import annotations

from deltafan.llm.checks import invalid
from deltafan.llm.profile import own_profile
from deltafan.llm.provider_table import ALIASES, PROVIDERS, Prefill, Provider
from deltafan.llm.settings import LLMSettings

__all__ = ["PROVIDERS", "Prefill", "Provider", "provider_facts", "split_model"]


def provider_facts(name: str) -> Provider:
    """The table's entry, or for a name of the settings' own, the facts of a plain OpenAI-compatible server."""
    return PROVIDERS.get(name) or Provider(name=name, keyless=True)


def split_model(model: str, settings: LLMSettings | None = None, *, own_address: bool = False) -> tuple[str, str]:
    """The provider and its name for the model: `groq/llama-3` is `("groq", "llama-3")`. No name fails.

    In this order:

    - The key of a `ModelProfile` of the program's own stands for its provider and model.
    - A prefix that is a provider of the table, an alias, or a provider of the settings chooses that. A model whose own
      name starts like a provider's needs both: `openrouter/openai/gpt-4o`.
    - A name without a slash belongs to the default provider, and so does one with a slash where the default provider
      may have such models: `meta-llama/Llama-3` at vLLM, or whatever a `base_url` of one's own serves.
    - Else (`nosuch/model` at OpenAI) the prefix is a provider that nobody knows. It has no address, and a request to
      it fails with `bad_request`, rather than go, and send its prompt, to whoever is the default.

    :param own_address: the default provider's address is one that the caller brings along, and that the settings do not
        have yet.
    :raises ValidationError: the model is no text.
    """
    if not isinstance(model, str):
        raise invalid("model", "must be a name, such as openai/gpt-5-mini")
    settings = settings or LLMSettings()
    profile = own_profile(model)
    if profile is not None:
        return profile.provider, profile.model
    prefix, slash, name = model.partition("/")
    if slash and name:
        provider = prefix if prefix in settings.providers else ALIASES.get(prefix, prefix)
        if provider in PROVIDERS or provider in settings.providers:
            return provider, name
        if prefix and not own_address and not _may_serve_slashes(settings):
            return prefix, name
    return settings.default_provider, model


def _may_serve_slashes(settings: LLMSettings) -> bool:
    own = settings.providers.get(settings.default_provider)
    return provider_facts(settings.default_provider).slashes or (own is not None and own.base_url is not None)
