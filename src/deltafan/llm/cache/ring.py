"""The ring that answers from a cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Final, Self

from deltafan.errors import CompletionError
from deltafan.events import Delta, Event
from deltafan.llm.cache import entry as entries
from deltafan.llm.cache.entry import LASTING, Entry, Failure, Recorder
from deltafan.llm.cache.flight import Flight
from deltafan.llm.cache.guard import MAX_BYTES, Guard
from deltafan.llm.cache.key import cache_key
from deltafan.llm.cache.options import CacheOptions
from deltafan.llm.cache.protocol import Cache, CorruptEntry
from deltafan.llm.providers import split_model
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions
from deltafan.llm.settings import LLMSettings
from deltafan.telemetry.hooks import Hook, Signal, silent

ERROR_TTL: Final = 60.0
"""Seconds that a stored failure is kept, when nothing else is said: most pass."""

_Alike = tuple[str, CacheOptions, float | None, float | None, float | None]


class Cached:
    """Implements `Completions`: answers from a cache what it holds, asks the inner completions for the rest, and stores
    their answers. `Request.options` says more, see `CacheOptions`.

    - Stored is a stream that came to its end, with its usage and its `Done`, and nothing less. After a switch of models
      in mid-stream with `restart`, what was void is not stored. An answer that a fallback gave is not stored: it is not
      what was asked for, and the next request may get that.
    - A stored answer comes as `Started(cached=True)`, its deltas, its `Usage`, its `Done`. The usage tells the tokens
      of the answer, and a `cost_usd` of 0.0: nobody pays twice. What it had cost is in `generations`.
    - Equal requests at the same time (the same key, options and limits of time) share one completion: all get its
      events from the first on, and its failure, too. It runs on as long as one of them listens. At most 64 events are
      read ahead of the fastest. It is shared within this object; several processes ask once each.
    - Whoever iterates to the end finds the answer stored. Storing begins after `Done` was handed on.
    - A cache that fails costs a warning (see `Guard`), not the request.

    The cache itself stays its owner's to close, after this ring.

    :param namespace: a part of every key: what one namespace stored is never read in another.
    :param ttl: seconds that answers are kept; `None` is as long as the cache keeps anything.
    :param error_ttl: the same, of failures that `cache_errors` stores.
    :param pace: deltas a second, of a stored answer; `None` is at once, in merged pieces of up to 64 K characters.
    :param timeout: seconds that the cache may take, each time.
    :param max_bytes: the largest entry; also what is buffered for those who join late.
    :param name_of: the name that a deployment answers to, by its id: `Router.name_of`, where a router is inside. An
        answer of a deployment with another name than the request's model is a fallback's.
    """

    def __init__(
        self,
        inner: Completions,
        cache: Cache,
        *,
        settings: LLMSettings | None = None,
        namespace: str = "default",
        ttl: float | None = None,
        error_ttl: float = ERROR_TTL,
        pace: float | None = None,
        timeout: float = 0.5,
        max_bytes: int = MAX_BYTES,
        hook: Hook = silent,
        name_of: Callable[[str], str | None] | None = None,
    ) -> None:
        self._inner = inner
        self._guard = Guard(cache, timeout=timeout, max_bytes=max_bytes, hook=hook)
        self._settings = settings
        self._namespace = namespace
        self._ttl = ttl
        self._error_ttl = error_ttl
        self._pace = pace
        self._max_bytes = max_bytes
        self._hook = hook
        self._name_of = name_of
        self._flights: dict[_Alike, Flight] = {}
        self._running: set[Flight] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what still runs; what is being stored is stored first."""
        running = list(self._running)
        for flight in running:
            if not flight.complete:
                await flight.cancel()
        if running:
            await asyncio.wait({flight.task for flight in running})

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        options = CacheOptions.of(request.options)
        key = self._key(request, options)
        if key is None:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    yield event
            return
        flight = self._flight(request, key, options)
        async with aclosing(flight.follow(flight.join())) as events:
            async for event in events:
                yield event
        if flight.hit is not None:
            async with aclosing(self._replay(flight.hit)) as events:
                async for event in events:
                    yield event

    async def generations(self, request: Request) -> tuple[Entry, ...]:
        """What is stored for the request, oldest first; readers get the last. Empty if there is nothing.

        :raises CompletionError: `bad_request`, for options that are wrong.
        """
        key = self._key(request, CacheOptions.of(request.options))
        stored = () if key is None else await self._read(key)
        return tuple(one for one in stored if isinstance(one, Entry))

    async def forget(self, request: Request) -> bool:
        """Remove what is stored for the request. Whether it is gone for sure; False where the cache did not serve.

        :raises CompletionError: `bad_request`, for options that are wrong.
        """
        key = self._key(request, CacheOptions.of(request.options))
        return key is None or await self._guard.delete(key)

    def _key(self, request: Request, options: CacheOptions) -> str | None:
        return cache_key(
            request,
            namespace=self._namespace,
            tenant=options.tenant,
            identifier=options.identifier,
            settings=self._settings,
        )

    def _flight(self, request: Request, key: str, options: CacheOptions) -> Flight:
        alike = (key, options, request.timeout, request.first_token_timeout, request.stall_timeout)
        flight = None if options.regen_cache else self._flights.get(alike)  # another generation is another answer
        if flight is not None and flight.open:
            self._hook(Signal("cache.joined", "debug", {"key": key}))
            return flight
        flight = Flight(partial(self._run, request, key, options), self._max_bytes)
        self._running.add(flight)
        self._flights[alike] = flight
        flight.task.add_done_callback(partial(self._landed, alike, flight))
        return flight

    def _landed(self, alike: _Alike, flight: Flight, _: asyncio.Task[None]) -> None:
        self._running.discard(flight)
        if self._flights.get(alike) is flight:
            del self._flights[alike]

    async def _run(self, request: Request, key: str, options: CacheOptions, flight: Flight) -> None:
        """Find the answer, or have it made and store it. The task of a flight."""
        if options.reads and (stored := await self._read(key)):
            newest = stored[-1]
            if isinstance(newest, Entry):
                self._hook(Signal("cache.hit", "debug", {"key": key, "age": time.time() - newest.created}))
                flight.hit = newest
                return
            if options.cache_errors and newest.code in LASTING:
                self._hook(Signal("cache.hit", "debug", {"key": key, "age": time.time() - newest.created}))
                raise newest.error()
        self._hook(Signal("cache.miss", "debug", {"key": key}))
        recorder = Recorder(self._max_bytes, *split_model(request.model, self._settings))
        nothing_yet = True
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    nothing_yet &= not isinstance(event, Delta)
                    recorder.add(event)
                    await flight.put(event)
        except CompletionError as error:
            if options.cache_errors and nothing_yet and error.code in LASTING:
                await self._store_failure(key, options, error)
            raise
        if options.cache_response and not self._fell_back(request, recorder.deployment):
            await self._store(key, options, recorder)

    def _fell_back(self, request: Request, deployment: str | None) -> bool:
        return self._name_of is not None and deployment is not None and self._name_of(deployment) != request.model

    async def _read(self, key: str) -> tuple[Entry | Failure, ...]:
        data = await self._guard.get(key)
        if data is None:
            return ()
        try:
            return entries.decode(data)
        except CorruptEntry as error:
            self._guard.corrupt(key, error.message)
            return ()

    async def _store(self, key: str, options: CacheOptions, recorder: Recorder) -> None:
        entry = recorder.entry()
        if entry is None:
            if recorder.oversized:
                self._hook(Signal("cache.oversized", "info", {"key": key}))
            return
        earlier = await self._read(key) if options.regen_cache else ()
        data = entries.encode([*(one for one in earlier if isinstance(one, Entry)), entry])
        if len(data) > self._max_bytes and earlier:
            data = entries.encode([entry])
        if await self._guard.set(key, data, options.ttl or self._ttl):
            self._hook(Signal("cache.stored", "debug", {"key": key, "bytes": len(data)}))

    async def _store_failure(self, key: str, options: CacheOptions, error: CompletionError) -> None:
        if any(isinstance(one, Entry) for one in await self._read(key)):
            return  # a good answer is not given up for a failure
        failure = Failure(time.time(), error.code, error.message, error.status, error.provider, error.model)
        await self._guard.set(key, entries.encode([failure]), options.ttl or self._error_ttl)

    async def _replay(self, entry: Entry) -> AsyncGenerator[Event, None]:
        now = asyncio.get_running_loop().time
        start, sent = now(), 0
        for event in entries.replay(entry, in_pieces=self._pace is not None):
            if self._pace is not None and isinstance(event, Delta):
                await asyncio.sleep(max(0.0, start + sent / self._pace - now()))
                sent += 1
            yield event
