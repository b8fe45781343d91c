"""The functions that litellm's users know: `import deltafan as litellm`, and basic programs run.

Answers are the openai SDK's own types, and can be read by key as litellm's can; errors have litellm's names.
Connections are kept for the next call.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, overload

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deltafan import errors as exceptions
from deltafan.client.calls import Messages, messages_of
from deltafan.client.litellm_params import attempts_of, fallbacks_of, model_of, seconds_of, split_params
from deltafan.client.openai_client import OpenAIClient
from deltafan.client.sdk_objects import Chunker, completion_of, embedding_response_of
from deltafan.client.transports import keep
from deltafan.errors import FieldError, ValidationError
from deltafan.events import Event
from deltafan.llm.embeddings import Input
from deltafan.llm.router import Router
from deltafan.llm.seam import Started
from deltafan.llm.tokens import count_tokens
from deltafan.portal import portal

__all__ = [
    "AsyncChunks",
    "Chunks",
    "acompletion",
    "aembedding",
    "completion",
    "completion_cost",
    "embedding",
    "exceptions",
    "token_counter",
]


class AsyncChunks:
    """A streamed answer: `async for chunk in answer`. Close it, if you do not read it to its end.

    :param first: the chunk that has come already.
    """

    def __init__(self, first: ChatCompletionChunk, rest: AsyncGenerator[ChatCompletionChunk, None]) -> None:
        self._first: ChatCompletionChunk | None = first
        self._rest = rest

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        if self._first is None:
            return await anext(self._rest)
        first, self._first = self._first, None
        return first

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the provider's connection. Nothing comes after it."""
        self._first = None
        await self._rest.aclose()

    close = aclose


class Chunks:
    """A streamed answer: `for chunk in answer`. Close it, if you do not read it to its end."""

    def __init__(self, chunks: AsyncChunks) -> None:
        self._chunks = chunks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatCompletionChunk:
        try:
            return portal().run(self._chunks.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the provider's connection. Nothing comes after it."""
        portal().run(self._chunks.aclose())


@overload
async def acompletion(
    model: str, messages: Messages | str = ..., *, stream: Literal[False] | None = ..., **params: Any
) -> ChatCompletion: ...
@overload
async def acompletion(
    model: str, messages: Messages | str = ..., *, stream: Literal[True], **params: Any
) -> AsyncChunks: ...
async def acompletion(
    model: str, messages: Messages | str = (), *, stream: bool | None = False, **params: Any
) -> ChatCompletion | AsyncChunks:
    """One completion, in the shape of litellm's `acompletion`.

    :param model: `provider/model`.
    :param messages: a list in OpenAI's shape, or one user message.
    :param stream: give chunks as they come; what fails before the first is raised here.
    :param params: any parameter of chat completions; and `api_key`, `base_url` or `api_base`, `timeout` (seconds, 600),
        `num_retries` (2), `fallbacks` (models to go on with), `custom_llm_provider`. `None` is as good as left out.
    :raises ValidationError: one is not supported (`logprobs`, `mock_response`, headers …), or wrong.
    :raises CompletionError: it failed; the subclasses have litellm's names.
    """
    client, params = client_for(model, params)
    await keep(client.settings)
    return await answer(client, messages, bool(stream), params)


async def answer(
    client: OpenAIClient, messages: Messages | str, stream: bool, params: Mapping[str, Any]
) -> ChatCompletion | AsyncChunks:
    """One completion of a client, which is closed after it."""
    if not stream:
        try:
            return completion_of(await client.invoke(messages, stream=False, **params))
        finally:
            await client.close()
    options = params.get("stream_options")
    include_usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    # Chunks cannot say that what they said is void: an answer that has begun is not begun anew.
    events = client.events(messages, mid_stream="fail", **params)
    chunks = _chunks(client, events, include_usage)
    return AsyncChunks(await anext(chunks), chunks)


@overload
def completion(
    model: str, messages: Messages | str = ..., *, stream: Literal[False] | None = ..., **params: Any
) -> ChatCompletion: ...
@overload
def completion(model: str, messages: Messages | str = ..., *, stream: Literal[True], **params: Any) -> Chunks: ...
def completion(
    model: str, messages: Messages | str = (), *, stream: bool | None = False, **params: Any
) -> ChatCompletion | Chunks:
    """As `acompletion`, for code without an event loop, and for plain functions inside one."""
    if stream:
        return Chunks(portal().run(acompletion(model, messages, stream=True, **params)))
    answer: ChatCompletion = portal().run(acompletion(model, messages, **params))
    return answer


async def aembedding(model: str, input: Input | Sequence[Input], **params: Any) -> CreateEmbeddingResponse:
    """Vectors of texts, in the shape of litellm's `aembedding`.

    :param params: `dimensions`, `encoding_format` (`float` or `base64`), `user`; and what is said of `acompletion`.
    :raises ValidationError: `encoding_format` is another.
    :raises CompletionError: it failed.
    """
    client, params = client_for(model, params)
    encoding = params.pop("encoding_format", "float")  # of the answer; on the wire it is base64 anyway
    if encoding not in ("float", "base64"):
        raise ValidationError([FieldError("encoding_format", "must be float or base64")])
    await keep(client.settings)
    try:
        return embedding_response_of(await client.embed(input, **params), base64=encoding == "base64")
    finally:
        await client.close()


def embedding(model: str, input: Input | Sequence[Input], **params: Any) -> CreateEmbeddingResponse:
    """As `aembedding`, for code without an event loop, and for plain functions inside one."""
    return portal().run(aembedding(model, input, **params))


def client_for(
    model: str, params: Mapping[str, Any], router: Router | None = None
) -> tuple[OpenAIClient, dict[str, Any]]:
    """A client for one call, and the parameters that are the provider's.

    :param router: asks in place of the model's provider.
    :raises ValidationError: one of ours is wrong.
    """
    ours, given = split_params(params)
    if router is not None:
        _refuse_deployments_own(ours)
    client = OpenAIClient(
        model_of(model, ours),
        api_key=ours.get("api_key"),
        base_url=ours.get("base_url") or ours.get("api_base"),
        timeout=seconds_of(ours),
        first_token_timeout=None,
        stall_timeout=None,
        attempts=attempts_of(ours),
        fallbacks=fallbacks_of(ours),
        router=router,
    )
    return client, given


def _refuse_deployments_own(ours: Mapping[str, Any]) -> None:
    errors = [
        FieldError(name, "belongs to the router, or to its deployments")
        for name in ours
        if name not in ("timeout", "request_timeout")
    ]
    if errors:
        raise ValidationError(errors)


def completion_cost(completion_response: ChatCompletion | CreateEmbeddingResponse) -> float:
    """US dollars that an answer of this module cost.

    :raises ValidationError: it is not known.
    """
    cost = getattr(getattr(completion_response, "usage", None), "cost", None)
    if not isinstance(cost, int | float):
        raise ValidationError([FieldError("completion_response", "its cost is not known")])
    return float(cost)


def token_counter(model: str, text: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None) -> int:
    """Tokens of a text, or of messages; see `deltafan.count_tokens`.

    :raises ValidationError: there is neither, or both.
    """
    given = text if messages is None else messages
    if given is None or (text is not None and messages is not None):
        raise ValidationError([FieldError("messages", "give either `text` or `messages`")])
    return int(count_tokens(given if isinstance(given, str) else messages_of(given), model))


async def _chunks(
    client: OpenAIClient, events: AsyncGenerator[Event, None], include_usage: bool
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """At least one: every completion ends with a `Done`, which makes one."""
    chunker = Chunker(Started(provider=client.provider, model=client.model, created=int(time.time())), include_usage)
    try:
        async with aclosing(events) as opened:
            async for event in opened:
                for chunk in chunker.chunks(event):
                    yield chunk
    finally:
        await client.close()
