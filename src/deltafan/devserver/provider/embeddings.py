"""Embeddings: vectors that follow from the text alone, the same in every run."""

from __future__ import annotations

import base64
import hashlib
import math
import sys
from array import array
from typing import Any

import orjson

from deltafan.devserver.provider.api_errors import ApiError
from deltafan.devserver.provider.chat import ChatRequest
from deltafan.devserver.provider.params import json_object, model_of, typed, whole, wrong

DIMENSIONS = 1536
"""Of a vector, where the request does not say."""
MAX_DIMENSIONS = 3072
MAX_INPUTS = 2048
"""OpenAI's bound for a request."""
MAX_TOKENS = 300_000
"""OpenAI's bound for a request; a word is a token here."""


def parse_embeddings_request(body: bytes) -> ChatRequest:
    """A message for each input, tokens as words.

    :raises ApiError: 400 that names the parameter and its rule.
    """
    params = json_object(body)
    whole(params, "dimensions", 1, MAX_DIMENSIONS)
    if params.get("encoding_format") not in (None, "float", "base64"):
        raise wrong("encoding_format", "must be float or base64")
    request = ChatRequest(
        model=model_of(params),
        messages=tuple({"role": "user", "content": text} for text in _inputs(params.get("input"))),
        stream=False,
        choices=1,
        token_limit=None,
        stop=(),
        include_usage=True,
        metadata=typed(params, "metadata", dict, "an object") or {},
        params={name: value for name, value in params.items() if name != "input"},
    )
    if request.prompt_words > MAX_TOKENS:
        told = f"Requested {request.prompt_words} tokens, max {MAX_TOKENS} tokens per request"
        raise ApiError(400, told, param="input", code="max_tokens_per_request")
    return request


def embeddings_body(request: ChatRequest, *, usage: bool) -> bytes:
    size: Any = request.params.get("dimensions") or DIMENSIONS
    in_base64 = request.params.get("encoding_format") == "base64"
    vectors = (vector(message["content"], size) for message in request.messages)
    body: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(numbers) if in_base64 else numbers.tolist()}
            for index, numbers in enumerate(vectors)
        ],
        "model": request.model,
    }
    if usage:
        body["usage"] = {"prompt_tokens": request.prompt_words, "total_tokens": request.prompt_words}
    return orjson.dumps(body)


def vector(text: str, dimensions: int = DIMENSIONS) -> array[float]:
    """The text's vector, of length 1. A shorter one is not the beginning of a longer one, for it is scaled anew."""
    bytes_ = hashlib.shake_256(text.encode(errors="replace")).digest(2 * dimensions)
    numbers = [int.from_bytes(bytes_[at : at + 2], "little") - 32767.5 for at in range(0, len(bytes_), 2)]
    length = math.hypot(*numbers)
    return array("f", [number / length for number in numbers])


def _base64(numbers: array[float]) -> str:
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _inputs(given: object) -> list[str]:
    if isinstance(given, str) or _is_tokens(given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise wrong("input", "must be a text, or a list of texts or of token lists")
    if len(given) > MAX_INPUTS:
        raise wrong("input", f"must be at most {MAX_INPUTS} inputs")
    for index, item in enumerate(given):
        if not ((isinstance(item, str) and item) or _is_tokens(item)):
            raise wrong(f"input[{index}]", "must be a text that is not empty, or a list of tokens")
    return [item if isinstance(item, str) else " ".join(map(str, item)) for item in given]


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
