"""The open SSE streams of this process: how many there may be, their heartbeats, and their end when it drains."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from deltafan.relay.answers import RETRY_AFTER, Refusal, unavailable
from deltafan.relay.client import SseClient
from deltafan.relay.frames import heartbeat_chunk
from deltafan.settings import RelaySettings

_ROUNDS = 8
"""Looks at all clients in one heartbeat interval; a heartbeat, and the end of an expired token's stream, is late by one
such part at most."""


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    open: int
    """Streams that are open now, of at most `max_followers`."""
    served: int
    """Streams that were ever opened."""
    cut: int
    """Streams whose client did not keep up."""


class Streams:
    """One timer serves every client's heartbeat, however many there are."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings = settings
        self.draining = False
        self._clients: set[SseClient] = set()
        self._places = 0
        self._places_of: Counter[str] = Counter()
        self._served = 0
        self._cut = 0

    def statistics(self) -> StreamStatistics:
        return StreamStatistics(self._places, self._served, self._cut)

    @contextmanager
    def place(self, name: str | None = None) -> Iterator[None]:
        """A place for one more stream.

        :param name: whose it is (see `Principal.name`), when that is limited.
        :raises Refusal: every place is taken, or all that one may have, or this process is about to end.
        """
        if self.draining:
            raise unavailable("this relay is shutting down; connect again", "draining", 1)
        if self._places >= self.settings.max_followers:
            raise unavailable("this relay has as many followers as it may have; try again", "too_many_followers")
        if name is not None and self._places_of[name] >= self.settings.max_followers_per_key:
            message = "this key or token has as many streams open as it may have"
            raise Refusal(429, message, code="too_many_followers", headers={"Retry-After": str(RETRY_AFTER)})
        self._places += 1
        if name is not None:
            self._places_of[name] += 1
        try:
            yield
        finally:
            self._places -= 1
            if name is not None:
                self._places_of[name] -= 1
                if not self._places_of[name]:
                    del self._places_of[name]

    @contextmanager
    def open(self, client: SseClient) -> Iterator[None]:
        self._clients.add(client)
        self._served += 1
        if self.draining:
            client.ended.set()
        try:
            yield
        finally:
            self._clients.discard(client)
            self._cut += client.was_cut

    def drain(self) -> None:
        """End every stream in good order: clients connect again elsewhere, with their cursor."""
        self.draining = True
        for client in self._clients:
            client.ended.set()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._beat(), name="deltafan-heartbeats")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.settings.heartbeat / _ROUNDS)
            wall = time.time()
            chunk = heartbeat_chunk(int(wall * 1000))
            now = clock()
            for client in tuple(self._clients):
                client.end_if_expired(wall)
                client.beat(chunk, now)
