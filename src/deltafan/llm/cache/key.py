"""Keys: two requests share one exactly if the same answer serves both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from deltafan.llm.embeddings import EmbeddingRequest
from deltafan.llm.providers import split_model
from deltafan.llm.request import Request
from deltafan.llm.settings import LLMSettings

VERSION: Final = 1
"""Of what goes into a key. Another version finds no entry of this one."""

IGNORED_PARAMS: Final = frozenset(
    {
        "api_key",
        "idempotency_key",
        "messages",
        "metadata",
        "model",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream",
        "stream_options",
        "timeout",
        "user",
    }
)
"""Parameters that say who asks, how the answer travels, or how fast, but not what is asked. (`model` and `messages` are
the request's own.) All others count, also one given with its default value: which that is, the provider may change."""

_IGNORED_OF_EMBEDDINGS: Final = IGNORED_PARAMS | {"input", "encoding_format"}

STATEFUL_PARAMS: Final = frozenset({"background", "conversation"})
"""With one of these set the same request does not mean the same twice, and is not cached."""


def cache_key(
    request: Request,
    *,
    namespace: str = "default",
    tenant: str | None = None,
    identifier: str | None = None,
    settings: LLMSettings | None = None,
) -> str | None:
    """64 hexadecimal digits; `None` if the request cannot be cached (see `STATEFUL_PARAMS`), or holds what is no JSON.

    In it are: namespace and tenant, provider with its endpoint and model as asked for, the API, messages, prefix,
    identifier, and the parameters but `IGNORED_PARAMS`. The order of parameters does not count, nor whether a whole
    number is written `1` or `1.0`. Limits of time, `streaming`, and other rings' options are not in it.

    :param settings: where a model named without a provider belongs, and other endpoints of known providers.
    """
    if any(request.params.get(name) for name in STATEFUL_PARAMS):
        return None
    return _digest(
        {
            "kind": "completion",
            "namespace": namespace,
            "tenant": tenant,
            "identifier": identifier,
            **_model(request.model, settings),
            "api": request.api,
            "messages": request.messages,
            "prefix": request.prefix,
            "params": _params(request.params, IGNORED_PARAMS),
        }
    )


def embedding_keys(
    request: EmbeddingRequest,
    *,
    namespace: str = "default",
    tenant: str | None = None,
    identifier: str | None = None,
    settings: LLMSettings | None = None,
) -> list[str] | None:
    """As `cache_key`, one for each input: of the text (or its tokens), the model, its dimensions and parameters."""
    keys = [
        _digest(
            {
                "kind": "embedding",
                "namespace": namespace,
                "tenant": tenant,
                "identifier": identifier,
                **_model(request.model, settings),
                "dimensions": request.dimensions,
                "params": _params(request.params, _IGNORED_OF_EMBEDDINGS),
                "input": text,
            }
        )
        for text in request.inputs
    ]
    whole = [key for key in keys if key is not None]
    return whole if len(whole) == len(keys) else None


def _model(model: str, settings: LLMSettings | None) -> dict[str, str | None]:
    settings = settings or LLMSettings()
    provider, name = split_model(model, settings)
    own = settings.providers.get(provider)
    # To the client an address is the same with and without a slash at its end.
    endpoint = own.base_url.rstrip("/") if own and own.base_url else None
    return {"provider": provider, "endpoint": endpoint, "model": name}


def _params(params: Mapping[str, Any], ignored: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in ignored}


def _digest(what: Mapping[str, Any]) -> str | None:
    try:
        # ASCII, so that a lone surrogate has a form of its own and no two texts share one.
        canonical = json.dumps(_plain({"v": VERSION, **what}), sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The value with one form for what is written in several ways."""
    match value:
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
