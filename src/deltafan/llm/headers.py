"""What the head of an answer tells: who answers, under which id, and how much of the rate limits is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from deltafan.llm.seam import Started

_REQUEST_ID = ("x-request-id", "request-id", "apim-request-id")
"""OpenAI's name for it, Anthropic's and Azure's."""
_RATE_LIMITS = ("x-ratelimit-", "anthropic-ratelimit-")


def started(provider: str, model: str, headers: Mapping[str, str], body: Any) -> Started:
    """:param model: as it was asked for.
    :param body: the answer's first object, or the whole of it.
    """
    body = body if isinstance(body, dict) else {}
    body_id = _text(body.get("id"))
    created = body.get("created", body.get("created_at"))
    return Started(
        provider=provider,
        model=_text(body.get("model")) or model,
        request_id=request_id(headers) or body_id,
        created=int(created) if isinstance(created, (int, float)) and 0 < created < 2**53 else int(time.time()),
        response_id=body_id,
        rate_limits=rate_limits(headers),
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    return next((headers[name] for name in _REQUEST_ID if headers.get(name)), None)


def service_tier(body: Any) -> str | None:
    """Which service was asked for, or was given in the end: it decides the price."""
    return _text(body.get("service_tier")) if isinstance(body, Mapping) else None


def rate_limits(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith(_RATE_LIMITS)}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
