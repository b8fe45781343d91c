"""The streaming client: OpenAI-compatible chat completions over the openai SDK's raw response.

The SDK builds and authenticates the request; the bytes of its answer are decoded here. Its retries are off: `Retrying`
composes outside, where it covers failures after the response began too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import httpx2

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, Usage
from deltafan.llm import failures, pricing, usage
from deltafan.llm.answer import Answer
from deltafan.llm.body import messages_of, params_of
from deltafan.llm.connections import Connections
from deltafan.llm.deadline import Deadline
from deltafan.llm.providers import Provider, provider_facts, split_model
from deltafan.llm.request import Request
from deltafan.llm.settings import LLMSettings

_DRAIN = 0.1  # seconds for the last bytes of a complete answer, so that its connection can be used again
_TRANSPORT_CODES = frozenset({"connection", "timeout_total", "timeout_stall"})


class OpenAICompletions:
    """Implements `Completions` for every provider of the table and of the settings. Close it: `async with`."""

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
            _ = self._connections.client(provider_facts(provider)).chat.completions

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        name, model = split_model(request.model, self._settings)
        provider = provider_facts(name)
        secret = self._connections.key(provider)
        deadline = Deadline(request.timeout, request.first_token_timeout, request.stall_timeout)
        answer = Answer(provider, secret)
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
                            deadline.visible = True
                            yield event
                        answer.raise_error()
                answer.raise_unless_complete()
                yield await _usage(request, provider, model, answer)
                yield Done(answer.chunks.finish_reason)
                await _drain(body)
        except CompletionError as error:
            error.provider, error.model = name, model
            raise
        except Exception as exc:
            failure = failures.from_exception(exc, secret=secret)
            if failure is None:
                raise
            failure.provider, failure.model = name, model
            raise failure from None
        finally:
            deadline.close()

    async def _open(self, stack: AsyncExitStack, request: Request, provider: Provider, model: str) -> httpx2.Response:
        client = self._connections.client(provider, prefill=bool(request.prefix))
        # In `extra_body` the messages pass as they are. Where they belong, the SDK walks through them by their types,
        # which takes seconds for ten thousand of them, and holds up every other stream.
        body = {**params_of(request, provider), "messages": messages_of(request, provider)}
        try:
            response = await stack.enter_async_context(
                client.chat.completions.with_streaming_response.create(
                    model=model, messages=[], stream=True, extra_body=body
                )
            )
        except (TypeError, ValueError) as exc:
            # What JSON or a header cannot carry: a lone surrogate, NaN, a line end in a key.
            raise CompletionError("bad_request", failures.redact(f"the request cannot be sent: {exc}")) from None
        return response.http_response


async def _usage(request: Request, provider: Provider, model: str, answer: Answer) -> Usage:
    used = usage.parse(answer.chunks.usage, cost_in_usage=provider.cost_in_usage)
    if used is None:
        used = usage.estimate(messages_of(request, provider), answer.chunks.output_chars)
    if used.cost_usd is None:
        # In a thread, because the first look at the price list loads it.
        used = replace(used, cost_usd=await asyncio.to_thread(pricing.cost_usd, provider.name, model, used))
    return used


def _is_transport_failure(exc: Exception) -> bool:
    failure = failures.from_exception(exc)
    return failure is not None and failure.code in _TRANSPORT_CODES


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    """Reads what is left of a complete answer, if it is there already, so that the connection can be used again."""
    with suppress(Exception):  # a connection that fails now is not used again, and nothing else is lost
        async with asyncio.timeout(_DRAIN):
            async for _ in body:
                pass
