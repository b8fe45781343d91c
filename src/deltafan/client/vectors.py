"""Embeddings as a program wants them: lists, or a numpy array."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltafan.client.calls import OPTIONS, check_options
from deltafan.errors import ConfigurationError
from deltafan.events import Usage
from deltafan.llm import LLMSettings, split_model
from deltafan.llm.embeddings import MAX_INPUTS, MAX_TOKENS, Embedder, Input, embed
from deltafan.llm.profiles import find_profile
from deltafan.llm.tokens import count_of

_BYTES = 4
"""The most that a character takes in UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The vectors of some inputs."""

    vectors: Any
    """One for each input, in their order: a list of lists of float, or the rows of a numpy array."""
    usage: Usage
    """Of all requests together."""
    model: str
    """As the provider names it."""
    provider: str
    response_time: float
    """Seconds."""
    request_id: str | None
    """The provider's id of the last request."""


async def embeddings_of(
    embedder: Embedder,
    model: str,
    settings: LLMSettings,
    inputs: Input | Sequence[Input],
    *,
    dimensions: int | None,
    as_array: bool,
    timeout: float | None,
    params: Mapping[str, Any],
) -> Embeddings:
    """See `OpenAIClient.embed`."""
    options = {key: params[key] for key in OPTIONS if key in params}
    check_options(options)
    if as_array:
        _numpy()  # before anything is asked and paid
    began = time.monotonic()
    profile = await asyncio.to_thread(find_profile, model, settings)  # loads the price list, perhaps
    provider, name = split_model(model, settings)
    most = profile.max_batch_tokens or MAX_TOKENS
    result = await embed(
        embedder,
        inputs,
        model,
        dimensions=dimensions,
        params={key: value for key, value in params.items() if key not in OPTIONS},
        timeout=timeout,
        options=options,
        count_tokens=await _counter(inputs, provider, name, most),
        max_inputs=profile.max_batch or MAX_INPUTS,
        max_tokens=most,
    )
    vectors: Any = result.vectors
    if as_array:
        numpy = _numpy()
        vectors = numpy.array(vectors, dtype=numpy.float32)
    return Embeddings(
        vectors=vectors,
        usage=result.usage,
        model=result.model or name,
        provider=result.provider or provider,
        response_time=time.monotonic() - began,
        request_id=result.request_id,
    )


async def _counter(inputs: Any, provider: str, name: str, most: int) -> Callable[[str], int] | None:
    """The tokens of each text, counted in a thread; `None` where even the bytes make but one request."""
    texts = {text for text in inputs if isinstance(text, str)} if isinstance(inputs, list | tuple) else set()
    if sum(map(len, texts)) * _BYTES <= most:
        return None

    def count() -> dict[str, int]:
        return {text: int(count_of(text, provider, name)) for text in texts}

    return (await asyncio.to_thread(count)).__getitem__


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise ConfigurationError(
            "as_array needs numpy, which is not installed: pip install 'deltafan[numpy]'"
        ) from None
    return numpy
