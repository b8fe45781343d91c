"""One SSE client: writes replay and live events to its connection, and is cut off when it does not keep up.

Live events go straight to the transport, whose write buffer is the client's buffer: its bound is `client_buffer`, and
a client that owes more is disconnected; it resumes from the log. A replay waits for the client instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Iterator

from aiohttp import web

from deltafan.broker.log import Entry
from deltafan.events import EventId
from deltafan.relay.frames import bare, event_chunk, gone_chunk
from deltafan.tokens import Hidden

STALL_SECONDS = 30.0
"""How long a client may take nothing at all, while a replay or the last bytes wait for it."""
REPLAY_BYTES = 64 * 1024
"""Bytes of a replay that are written at once, and no more than a client may owe."""
VANISHED_SECONDS = 20.0
"""How long a connection's other side must be silent, at least, to count as vanished: networks pause."""
_HEARTBEATS_LOST = 3
_JITTER = 0.2

logger = logging.getLogger("deltafan.relay")


class SseClient:
    """A `Follower` of a feed. `ended` is set when there is nothing more to write, whatever the reason."""

    def __init__(
        self,
        transport: asyncio.Transport,
        response: web.StreamResponse,
        job_id: str,
        *,
        after: EventId | None,
        buffer: int,
        heartbeat: float,
        chunks: bool,
        hide: frozenset[Hidden] = frozenset(),
        expires: float | None = None,
    ) -> None:
        """
        :param hide: what the client does not get to see.
        :param expires: when it may no longer follow, in Unix time; `None` is never.
        """
        self.after = after
        """The last event written: where the client goes on."""
        self.ended = asyncio.Event()
        self.was_cut = False
        self._transport = transport
        self._response = response
        self._job_id = job_id
        self._buffer = buffer
        self._chunks = chunks
        self._hide = hide
        self._expires = expires
        self._clock = asyncio.get_running_loop().time
        self._heartbeat = heartbeat
        self._patience = self._new_patience()
        self._wrote = self._clock()
        self._replaying = False

    async def replay(self, entries: list[Entry]) -> None:
        """Write what the log holds, as fast as the client takes it."""
        self._replaying = True
        try:
            for piece, last in _pieces(entries, min(REPLAY_BYTES, self._buffer), self._hide):
                if self.ended.is_set():
                    return
                async with asyncio.timeout(STALL_SECONDS):
                    await self._response.write(piece)
                self.after = last.id
                self._wrote = self._clock()
        except TimeoutError:
            self.cut()
            return
        finally:
            self._replaying = False
        if entries and entries[-1].type == "done":
            self.ended.set()

    def live(self, entry: Entry) -> None:
        if self.ended.is_set():
            return
        self._write(event_chunk(entry, self._hide))
        self.after = entry.id
        if entry.type == "done":
            self.ended.set()

    def gone(self) -> None:
        if not self.ended.is_set():
            self._write(gone_chunk(self._job_id))
            self.ended.set()

    def beat(self, chunk: bytes, now: float) -> None:
        """Write a heartbeat if the client has heard nothing for long enough. Also notices a client that has left."""
        if now - self._wrote < self._patience or self.ended.is_set() or self._replaying:
            return  # while a replay waits for it, it has bytes to take, and a time for that
        self._patience = self._new_patience()
        self._write(chunk)

    def end_if_expired(self, now: float) -> None:
        """End in good order when the client's token has expired: it comes back with its cursor, and a new token.

        :param now: Unix time in seconds.
        """
        if self._expires is not None and now >= self._expires:
            self.ended.set()

    def cut(self) -> None:
        """Disconnect at once, dropping what is unsent."""
        self.was_cut = True
        self.ended.set()
        self._transport.abort()

    async def flush(self) -> None:
        """Wait until the connection has taken every byte, so that closing it loses none."""
        self._transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._response.write_eof()
        except TimeoutError:
            self.cut()
        except ConnectionError:
            return  # it has left

    def _write(self, chunk: bytes) -> None:
        if self._transport.is_closing():
            self.ended.set()
        elif self._transport.get_write_buffer_size() > self._buffer:
            logger.info("a follower that does not keep up is disconnected: it owes more than %d bytes", self._buffer)
            self.cut()
        else:
            self._transport.write(chunk if self._chunks else bare(chunk))
            self._wrote = self._clock()

    def _new_patience(self) -> float:
        return self._heartbeat * random.uniform(1 - _JITTER, 1.0)  # noqa: S311 - jitter, not a secret


def _pieces(entries: list[Entry], fair: int, hide: frozenset[Hidden] = frozenset()) -> Iterator[tuple[bytes, Entry]]:
    """Frames joined to writes of a fair size in bytes, or of one frame, each with the last entry in it."""
    frames: list[bytes] = []
    size = 0
    for place, entry in enumerate(entries):
        frames.append(bare(event_chunk(entry, hide)))
        size += len(frames[-1])
        if size >= fair or place == len(entries) - 1:
            yield b"".join(frames), entry
            frames, size = [], 0


def watch_connection(transport: asyncio.Transport, heartbeat: float) -> None:
    """Have the system drop a connection whose other side acknowledges nothing, or takes nothing, for three heartbeats,
    20 s at least (where it can: Linux). One that has vanished, with its network, says nothing itself.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    sock = transport.get_extra_info("socket")
    if option is not None and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        seconds = max(_HEARTBEATS_LOST * heartbeat, VANISHED_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
