"""Connections to providers, shared by all clients of an event loop that have the same settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final
from weakref import WeakKeyDictionary

from deltafan.events import Event
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.embeddings import EmbeddingRequest, EmbeddingResult
from deltafan.llm.request import Request
from deltafan.llm.settings import LLMSettings

MAX_KEPT: Final = 64
"""Transports of a loop that are kept open for functions without a client: one for each key and address in use."""


class Transport:
    """One `OpenAICompletions`, closed when its last user releases it, and at the end of its loop at the latest."""

    def __init__(self, settings: LLMSettings) -> None:
        self.settings = settings
        self.completions = OpenAICompletions(settings)
        self._users = 0
        self._keeper = self._until_the_end()

    async def acquire(self) -> None:
        self._users += 1
        if self._users == 1:
            await anext(self._keeper)

    async def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            await self._keeper.aclose()

    async def __aenter__(self) -> None:
        """In use: a client that is closed meanwhile does not cut off what runs.

        No `asynccontextmanager`: the end of a loop closes all async generators at once, and that would be one.
        """
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        """A loop that ends closes the async generators that are open in it, and with this one the connections."""
        try:
            yield
        finally:
            transports = _open.get(asyncio.get_running_loop(), [])
            if self in transports:
                transports.remove(self)
            await self.completions.__aexit__(None, None, None)
            await asyncio.sleep(0)  # a loop closes the sockets of what was aborted in its next round


_open: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Transport]] = WeakKeyDictionary()
_kept: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Transport]] = WeakKeyDictionary()
"""Those that `keep` holds, the one used last at the end."""


async def acquire(settings: LLMSettings) -> Transport:
    """The transport of these settings in the running loop. Release it. Other tasks do not run meanwhile."""
    transports = _open.setdefault(asyncio.get_running_loop(), [])
    transport = next((other for other in transports if other.settings == settings), None)
    if transport is None:
        transport = Transport(settings)
        transports.append(transport)
    await transport.acquire()
    return transport


async def keep(settings: LLMSettings) -> None:
    """Keep these connections for calls to come, until the loop ends or `MAX_KEPT` others have been used since."""
    transport = await acquire(settings)
    kept = _kept.setdefault(asyncio.get_running_loop(), [])
    if transport in kept:
        kept.remove(transport)
        await transport.release()
    kept.append(transport)
    if len(kept) > MAX_KEPT:
        await kept.pop(0).release()


class SharedTransport:
    """`Completions` and `Embedder` over the transport that all clients of the running loop share.

    It is opened at first use. One object serves several loops, one after another or at a time.
    """

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, Transport] = WeakKeyDictionary()

    async def aclose(self) -> None:
        """Let go of it in this loop. What runs there runs on, and what comes opens it again."""
        held = self._held.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held.release()

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        transport = await self._transport()
        async with transport, aclosing(transport.completions.stream(request)) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """See `Embedder.embed`."""
        transport = await self._transport()
        async with transport:
            return await transport.completions.embed(request)

    async def _transport(self) -> Transport:
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            held = self._held[loop] = await acquire(self._settings)
        return held
