"""Reading a request's body: bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from deltafan.errors import FieldError, ValidationError
from deltafan.relay.answers import Refusal, too_large

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""


async def read_body(request: web.Request, limit: int) -> bytes:
    """:raises Refusal: it is larger than `limit` bytes, is compressed, or does not arrive."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "send the body as it is, without Content-Encoding")
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while data := await request.content.readany():
                body += data
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    return bytes(body)


def json_object(raw: bytes) -> dict[str, Any]:
    """:raises Refusal: it is not JSON.
    :raises ValidationError: it is JSON, but no object.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ValidationError([FieldError("", "must be a JSON object")])
    return value
