"""The client: completions of OpenAI-compatible providers over the openai SDK's raw response, streamed or not, by chat
completions or the Responses API; and embeddings.

The SDK authenticates and sends the request; the bytes of its answer are decoded here. Its retries are off: `Retrying`
composes outside, where it covers failures after the response began too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx2

from deltafan.errors import CompletionError
from deltafan.events import Event, Usage
from deltafan.llm import failures, pricing, usage
from deltafan.llm.answer import answer_to, end_of
from deltafan.llm.body import body_of, prompt_of
from deltafan.llm.connections import Connections
from deltafan.llm.deadline import Deadline
from deltafan.llm.decode import ChunkDecoder, parse_json
from deltafan.llm.embeddings import EmbeddingRequest, EmbeddingResult
from deltafan.llm.headers import service_tier, started
from deltafan.llm.providers import Provider, provider_facts, split_model
from deltafan.llm.request import Request
from deltafan.llm.responses import ResponsesDecoder
from deltafan.llm.settings import LLMSettings
from deltafan.llm.vectors import embedding_body, read_body, read_embeddings

_DRAIN = 0.1  # seconds for the last bytes of a complete answer, so that its connection can be used again
_TRANSPORT_CODES = frozenset({"connection", "timeout_total", "timeout_stall"})


class OpenAICompletions:
    """Implements `Completions` and `Embedder` for every provider of the table and of the settings. Close it:
    `async with`."""

    def __init__(self, settings: LLMSettings | None = None) -> None:
        self._settings = settings or LLMSettings()
        self._connections = Connections(self._settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connections.aclose()

    def prepare(self, provider: str) -> None:
        """Make a provider's client before the first request needs it. One that cannot be made tells so at its use."""
        with suppress(CompletionError):
            self._connections.client(provider_facts(provider))

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        name, model = split_model(request.model, self._settings)
        provider = provider_facts(name)
        secret = self._connections.key(provider)
        deadline = Deadline(request.timeout, request.first_token_timeout, request.stall_timeout)
        answer = answer_to(request, provider, secret)
        head: Any = None
        try:
            async with AsyncExitStack() as stack:
                response = await deadline.wait(partial(self._open, stack, request, provider, model))
                answer.begin(response.headers.get("content-type", ""))
                body = await stack.enter_async_context(aclosing(response.aiter_bytes()))
                next_bytes = partial(anext, body, None)
                data: bytes | None = b""
                while data is not None and not answer.done:
                    try:
                        data = await deadline.wait(next_bytes)
                    except Exception as exc:
                        # Only usage can be missing of a complete answer: no reason to throw it away.
                        if answer.complete and _is_transport_failure(exc):
                            break
                        raise
                    for sse in answer.read(data):
                        for event in answer.decode(sse):
                            if head is None:
                                deadline.visible = True
                                head = answer.chunks.head or parse_json(sse.data)
                                yield started(name, model, response.headers, head)
                            yield event
                        answer.raise_error()
                    if answer.arriving:
                        deadline.visible = True
                answer.raise_unless_complete()
                if head is None:
                    yield started(name, model, response.headers, answer.chunks.head)
                yield await self._usage(request, provider, model, answer.chunks, head)
                yield end_of(answer.chunks)
                await _drain(body)
        except Exception as exc:
            failure = _failure(exc, name, model, secret)
            if failure is None:
                raise
            raise failure from None
        finally:
            deadline.close()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """See `Embedder.embed`."""
        name, model = split_model(request.model, self._settings)
        provider = provider_facts(name)
        secret = self._connections.key(provider)
        deadline = Deadline(request.timeout, None, None)
        try:
            async with AsyncExitStack() as stack:
                post = partial(self._connections.post, stack, provider, "/embeddings", embedding_body(request, model))
                response = await deadline.wait(post)
                data = await deadline.wait(partial(read_body, response))
            result = await read_embeddings(data, request, provider, model, response.headers, secret)
            return replace(result, usage=await self._priced(result.usage, provider, model))
        except Exception as exc:
            failure = _failure(exc, name, model, secret)
            if failure is None:
                raise
            raise failure from None
        finally:
            deadline.close()

    async def _open(self, stack: AsyncExitStack, request: Request, provider: Provider, model: str) -> httpx2.Response:
        path = "/responses" if request.api == "responses" else "/chat/completions"
        body = body_of(request, provider, model)
        return await self._connections.post(stack, provider, path, body, prefill=bool(request.prefix))

    async def _usage(
        self, request: Request, provider: Provider, model: str, chunks: ChunkDecoder | ResponsesDecoder, head: Any
    ) -> Usage:
        used = usage.parse_usage(chunks.usage, cost_in_usage=provider.cost_in_usage)
        if used is None:
            used = usage.estimate(prompt_of(request, provider), chunks.output_chars)
        tier = service_tier(chunks.head or head) or service_tier(request.params)
        return await self._priced(used, provider, model, raw=chunks.usage, service_tier=tier)

    async def _priced(self, used: Usage, provider: Provider, model: str, **facts: Any) -> Usage:
        if used.cost_usd is not None:
            return used
        cost = partial(pricing.cost_usd, provider.name, model, used, models=self._settings.models, **facts)
        # In a thread, because the first look at the price list loads it.
        return replace(used, cost_usd=await asyncio.to_thread(cost))


def _failure(exc: Exception, provider: str, model: str, secret: str) -> CompletionError | None:
    failure = failures.from_exception(exc, secret=secret)
    if failure is not None:
        failure.provider, failure.model = provider, model
    return failure


def _is_transport_failure(exc: Exception) -> bool:
    failure = failures.from_exception(exc)
    return failure is not None and failure.code in _TRANSPORT_CODES


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    """Reads what is left of a complete answer, if it is there already, so that the connection can be used again."""
    with suppress(Exception):  # a connection that fails now is not used again, and nothing else is lost
        async with asyncio.timeout(_DRAIN):
            async for _ in body:
                pass
