"""A ring that tries again while nothing has been seen of the answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import count

from deltafan.errors import CompletionError
from deltafan.events import Event
from deltafan.llm.checks import invalid, is_count, is_number
from deltafan.llm.embeddings import Embedder, EmbeddingRequest, EmbeddingResult
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions

RetryHook = Callable[[CompletionError, int, float], None]
"""Called before each wait: why, the attempt that failed (from 1), and the seconds until the next."""


class _Patience:
    """How often, and after which waits, something is tried again."""

    def __init__(
        self, attempts: int = 3, max_wait: float = 5.0, backoff: float = 0.5, on_retry: RetryHook | None = None
    ) -> None:
        if not is_count(attempts):
            raise invalid("attempts", "must be a whole number, 1 or more")
        for name, seconds in (("max_wait", max_wait), ("backoff", backoff)):
            if not is_number(seconds) or seconds < 0:
                raise invalid(name, "must be a number of seconds, 0 or more")
        self._attempts = attempts
        self._max_wait = max_wait
        self._backoff = backoff
        self._on_retry = on_retry

    async def wait(self, error: CompletionError, attempt: int, ends: float | None) -> None:
        """Wait for the next attempt.

        :param ends: the time of the loop's clock at which all attempts are over.
        :raises CompletionError: the error itself: there is none.
        """
        if not error.retryable or attempt >= self._attempts:
            raise error
        bound = min(self._max_wait, self._backoff * 2 ** (attempt - 1))
        jittered = random.uniform(0, bound)  # noqa: S311 - spreads load, keeps no secret
        wait = max(jittered, error.retry_after or 0.0)
        if wait > self._max_wait or (ends is not None and asyncio.get_running_loop().time() + wait >= ends):
            raise error
        if self._on_retry is not None:
            self._on_retry(error, attempt, wait)
        await asyncio.sleep(wait)


class Retrying:
    """Repeats a completion that failed in a way that may pass, before it yielded anything.

    Waits grow exponentially with full jitter, and are never shorter than the provider's Retry-After. A Retry-After
    above `max_wait` is raised at once: waiting that long is for the queue. `Request.timeout` bounds all attempts
    together; the other limits hold for each.

    :param attempts: how often it is tried in all.
    :param max_wait: the longest wait between two attempts, in seconds.
    :param backoff: the bound of the first wait, in seconds; it doubles with each attempt.
    :raises ValidationError: a number is not what it must be.
    """

    def __init__(
        self,
        inner: Completions,
        *,
        attempts: int = 3,
        max_wait: float = 5.0,
        backoff: float = 0.5,
        on_retry: RetryHook | None = None,
    ) -> None:
        self._inner = inner
        self._patience = _Patience(attempts, max_wait, backoff, on_retry)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        loop = asyncio.get_running_loop()
        asked = request.timeout
        ends = None if asked is None else loop.time() + asked
        for attempt in count(1):
            if ends is not None and attempt > 1:  # the first has it all, and tells of it as it was given
                request = replace(request, timeout=ends - loop.time())
            yielded = False
            try:
                async with aclosing(self._inner.stream(request)) as events:
                    async for event in events:
                        yielded = True
                        yield event
                return
            except CompletionError as error:
                if asked is not None and attempt > 1 and error.code == "timeout_total":
                    error.message = f"{error.message}; all {attempt} attempts together had {asked:g} s"
                    error.args = (error.message,)
                if yielded:
                    raise
                failure = error
            await self._patience.wait(failure, attempt, ends)


class RetryingEmbedder:
    """The same for embeddings. See `Retrying`."""

    def __init__(
        self,
        inner: Embedder,
        *,
        attempts: int = 3,
        max_wait: float = 5.0,
        backoff: float = 0.5,
        on_retry: RetryHook | None = None,
    ) -> None:
        self._inner = inner
        self._patience = _Patience(attempts, max_wait, backoff, on_retry)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """See `Embedder.embed`."""
        loop = asyncio.get_running_loop()
        ends = None if request.timeout is None else loop.time() + request.timeout
        attempt = 1
        while True:
            if ends is not None and attempt > 1:
                request = replace(request, timeout=ends - loop.time())
            try:
                return await self._inner.embed(request)
            except CompletionError as error:
                failure = error
            await self._patience.wait(failure, attempt, ends)
            attempt += 1
