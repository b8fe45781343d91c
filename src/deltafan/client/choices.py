"""What a client's arguments mean: which model, which provider, which cache."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import SecretStr

from deltafan.errors import FieldError, ValidationError
from deltafan.llm import LLMSettings, ProviderSettings
from deltafan.llm.cache import Cache
from deltafan.llm.cache.settings import Backend, CacheSettings
from deltafan.llm.profiles import ModelProfile

Model = str | ModelProfile | type[ModelProfile]
"""A profile, its key, `provider/model`, or a bare name for the default provider."""


def model_name(model: Any, field: str = "model") -> str:
    """:raises ValidationError: names `field`."""
    if isinstance(model, ModelProfile) or (isinstance(model, type) and issubclass(model, ModelProfile)):
        model = f"{model.provider}/{model.model}"
    if not isinstance(model, str) or not model:
        raise ValidationError([FieldError(field, "must be a profile, or a name such as openai/gpt-5-mini")])
    return model


def cache_of(given: Any, settings: CacheSettings) -> Cache | CacheSettings | None:
    """The caller's cache, or how to open the one that is named.

    :raises ValidationError: `cache_backend` is neither a name that is known nor a cache.
    """
    if given is None:
        return None
    if isinstance(given, str) and given in get_args(Backend):
        return settings.model_copy(update={"cache_backend": given})
    if isinstance(given, str) or not all(callable(getattr(given, name, None)) for name in ("get", "set", "delete")):
        names = ", ".join(get_args(Backend))
        raise ValidationError([FieldError("cache_backend", f"must be one of {names}, or a Cache")])
    cache: Cache = given
    return cache


def with_own(settings: LLMSettings, provider: str, api_key: str | None, base_url: str | None) -> LLMSettings:
    """The settings, with what was given for this client's provider.

    :raises ValidationError: the address is none.
    """
    if api_key is None and base_url is None:
        return settings
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ValidationError([FieldError("base_url", "must begin with http:// or https://")])
    known = settings.providers.get(provider) or ProviderSettings()
    own = ProviderSettings(
        base_url=base_url or known.base_url, api_key=SecretStr(api_key) if api_key else known.api_key
    )
    return settings.model_copy(update={"providers": {**settings.providers, provider: own}})
