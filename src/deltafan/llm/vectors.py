"""One request for embeddings and its answer as bytes: base64 on the wire, lists of numbers in the program."""

from __future__ import annotations

import asyncio
import binascii
import sys
from array import array
from collections.abc import Mapping
from typing import Any

import httpx2

from deltafan.events import Usage
from deltafan.llm import failures, usage
from deltafan.llm.decode import parse_json
from deltafan.llm.embeddings import EmbeddingRequest, EmbeddingResult
from deltafan.llm.failures import malformed
from deltafan.llm.headers import rate_limits, request_id
from deltafan.llm.providers import Provider

MAX_BODY = 256 * 1024 * 1024
"""Bytes of an answer: twice what 2,048 vectors of 3,072 numbers take as text. Our own bound."""
_LARGE = 256 * 1024
"""Bytes of a body that is decoded in a thread: it takes milliseconds, in which every stream would stand still."""
_OURS = frozenset(
    {"model", "input", "encoding_format", "base_url", "api_key", "extra_headers", "extra_query", "extra_body"}
)


def embedding_body(request: EmbeddingRequest, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {name: value for name, value in request.params.items() if name not in _OURS}
    # Half the bytes of numbers as text, and an eighth of the time to read them. Who does not know it sends numbers.
    body |= {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


async def read_body(response: httpx2.Response) -> bytes:
    """:raises CompletionError: `malformed_stream`: it is too large."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BODY:
            raise malformed(f"it is larger than {MAX_BODY} bytes")
    return bytes(body)


async def read_embeddings(
    data: bytes,
    request: EmbeddingRequest,
    provider: Provider,
    model: str,
    headers: Mapping[str, str],
    secret: str = "",
) -> EmbeddingResult:
    """The result, without its cost.

    :param model: as it was asked for.
    :raises CompletionError: `malformed_stream`, or what the provider's error says that it sent as an answer.
    """
    if len(data) < _LARGE:
        body, vectors = _decode(data, len(request.inputs), secret)
    else:
        body, vectors = await asyncio.to_thread(_decode, data, len(request.inputs), secret)
    answered = body.get("model")
    return EmbeddingResult(
        vectors,
        _usage(body, request, provider),
        provider.name,
        answered if isinstance(answered, str) and answered else model,
        request_id(headers),
        rate_limits(headers),
    )


def _decode(data: bytes, count: int, secret: str) -> tuple[dict[str, Any], list[list[float]]]:
    body = parse_json(data, "the answer")
    if type(body) is not dict:
        raise malformed("the answer is not an object")
    if body.get("error"):
        raise failures.from_body(body, secret=secret)
    items = body.get("data")
    if type(items) is not list or len(items) != count:
        raise malformed(f"it does not hold {count} embeddings, as many as there were inputs")
    vectors: list[list[float] | None] = [None] * count
    for position, item in enumerate(items):
        if type(item) is not dict:
            raise malformed("an embedding is not an object")
        index = item.get("index", position)
        if type(index) is not int or not 0 <= index < count or vectors[index] is not None:
            raise malformed("the embeddings are not numbered as the inputs are")
        vectors[index] = _vector(item.get("embedding"))
    return body, [vector for vector in vectors if vector is not None]


def _vector(value: Any) -> list[float]:
    """From base64 of little-endian 32-bit floats, or from a list of numbers."""
    try:
        if type(value) is str:
            numbers = array("f", binascii.a2b_base64(value, strict_mode=True))
            if sys.byteorder == "big":
                numbers.byteswap()
            return numbers.tolist()
        if type(value) is list:
            return array("d", value).tolist()
    except (ValueError, TypeError, OverflowError):
        pass
    raise malformed("an embedding is neither base64 nor a list of numbers")


def _usage(body: dict[str, Any], request: EmbeddingRequest, provider: Provider) -> Usage:
    """Embeddings have no output: its tokens are known to be none."""
    raw = body.get("usage")
    used = usage.parse_usage(raw, cost_in_usage=provider.cost_in_usage)
    if used is None or used.prompt_tokens is None:
        texts = [{"content": item} for item in request.inputs if isinstance(item, str)]
        tokens = sum(len(item) for item in request.inputs if not isinstance(item, str))
        prompt = usage.estimate(texts, 0).prompt_tokens or 0
        counted = prompt - usage.TOKENS_PER_MESSAGE * len(texts) + tokens
        return Usage(counted, 0, counted, 0, 0, source="estimated")
    return Usage(used.prompt_tokens, 0, used.total_tokens, used.cached_tokens or 0, 0, used.cost_usd, source="reported")
