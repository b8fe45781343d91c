"""Embeddings: what is asked and answered, and how many inputs are made into requests that a provider takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from deltafan.errors import CompletionError
from deltafan.events import Usage

MAX_INPUTS = 2048
"""Inputs in one request. OpenAI's limit."""
MAX_TOKENS = 300_000
"""Tokens of all inputs in one request. OpenAI's limit."""
CONCURRENCY = 4
"""Requests for one call of `embed` that run at once. Our own bound."""

Input = str | Sequence[int]
"""A text, or the tokens of one."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One request."""

    model: str
    """`provider/model`, or a bare name for the default provider."""
    inputs: Sequence[Input]
    dimensions: int | None = None
    """The length that the vectors shall have, for models that can shorten them."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Any other parameter of the endpoint, such as `user`; sent as it is."""
    timeout: float | None = None
    """Seconds for the whole request."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What rings are told about this request, such as the cache's `ttl`. Not sent."""


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    vectors: list[list[float]]
    """One for each input, in their order."""
    usage: Usage
    provider: str = ""
    model: str = ""
    """As the provider names it in its answer."""
    request_id: str | None = None
    """Of the last of several requests."""
    rate_limits: Mapping[str, str] = field(default_factory=dict)
    """The answer's `x-ratelimit-*` headers as they were sent, names in lower case."""


class Embedder(Protocol):
    """Makes embeddings. Rings take an `Embedder` and are one, as with `Completions`."""

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """The vectors for one request, which must be within the provider's limits.

        Raises `CompletionError`, and nothing else, for whatever the provider or the network did. Cancelling the task
        closes the provider's connection.
        """
        ...


async def embed(
    embedder: Embedder,
    inputs: Input | Sequence[Input],
    model: str,
    *,
    dimensions: int | None = None,
    params: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    options: Mapping[str, Any] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    max_inputs: int = MAX_INPUTS,
    max_tokens: int = MAX_TOKENS,
    concurrency: int = CONCURRENCY,
) -> EmbeddingResult:
    """Embed any number of inputs: split into as few requests as the limits allow, in order, usage summed.

    :param inputs: a text, the tokens of one, or a list of such; an empty list gives no vectors and asks nobody.
    :param timeout: seconds for each request.
    :param count_tokens: of a text, by the model's tokenizer. Left out, a byte counts as a token, which is never too
        few, and makes more requests than are needed.
    :param max_inputs: inputs that the provider takes in a request.
    :param max_tokens: tokens that it takes in one. An input that is over it alone is for the provider to refuse.
    :param concurrency: requests at once.
    :raises CompletionError: one of the requests failed, the first that did; the others have been stopped.
    """
    batches = list(_batches(_inputs(inputs), count_tokens or _bytes, max_inputs, max_tokens))
    if not batches:
        return EmbeddingResult([], Usage(0, 0, 0, 0, 0, 0.0, source="reported"), model=model)
    slots = asyncio.Semaphore(concurrency)

    async def one(batch: list[Input]) -> EmbeddingResult:
        async with slots:
            return await embedder.embed(
                EmbeddingRequest(model, batch, dimensions, params or {}, timeout, options or {})
            )

    if len(batches) == 1:
        return await one(batches[0])
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(batch)) for batch in batches]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    results = [task.result() for task in tasks]
    used = results[0].usage
    for result in results[1:]:
        used = used + result.usage
    return replace(results[-1], vectors=[vector for result in results for vector in result.vectors], usage=used)


def _batches(
    inputs: list[Input], count: Callable[[str], int], max_inputs: int, max_tokens: int
) -> Iterator[list[Input]]:
    batch: list[Input] = []
    tokens = 0
    for item in inputs:
        size = count(item) if isinstance(item, str) else len(item)
        if batch and (len(batch) >= max_inputs or tokens + size > max_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += size
    if batch:
        yield batch


def _inputs(given: Input | Sequence[Input]) -> list[Input]:
    """:raises CompletionError: `bad_request` that names the input."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Sequence):
        raise CompletionError("bad_request", "input: must be a text, or a list of texts or of token lists")
    if given and all(type(item) is int for item in given):
        return [given]  # type: ignore[list-item]
    out: list[Input] = []
    for number, item in enumerate(given):
        tokens = isinstance(item, Sequence) and bool(item) and all(type(token) is int for token in item)
        if not (isinstance(item, str) or tokens):
            raise CompletionError("bad_request", f"input[{number}]: must be a text or a list of tokens")
        out.append(item)  # type: ignore[arg-type]
    return out


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
