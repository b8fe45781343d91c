"""Sending: an answer's pieces go out when they are due, and no sooner."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

from aiohttp import web

from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.endings import Ending
from deltafan.devserver.provider.faults import Fault
from deltafan.devserver.provider.journal import Journal, RequestRecord

BATCH_BYTES = 64 << 10
"""At most so much is written at once when the pieces are due: enough for speed, little enough to stop at once."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Pace:
    """Chunk i, from 0, is due `i / rate` seconds after the first; rate 0 is all at once."""

    rate: float

    def due(self, index: int) -> float:
        return index / self.rate if self.rate else 0.0


class Output:
    """The connection to the client, as the writing faults (`split`, `crlf`) leave it."""

    def __init__(self, request: web.Request, response: web.StreamResponse, faults: dict[str, Fault]) -> None:
        self._request = request
        self._response = response
        self._crlf = "crlf" in faults
        split = faults.get("split")
        self._sizes = None if split is None else cycle([int(split.arg)] if split.arg else [1, 2, 3])

    @property
    def splits(self) -> bool:
        """One write becomes many."""
        return self._sizes is not None

    async def open(self) -> None:
        """Sends the headers."""
        await self._response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        """:raises ConnectionError: the client has gone."""
        if self._crlf:
            data = _LINE_END.sub(b"\r\n", data)
        if self._sizes is None:
            await self._response.write(data)
            return
        start = 0
        while start < len(data):
            size = next(self._sizes)
            await asyncio.sleep(0)  # before, not after: what has been written is then known to the caller at once
            await self._response.write(data[start : start + size])
            start += size

    async def close(self) -> None:
        """Ends the body in order."""
        await self._response.write_eof()

    def cut(self) -> None:
        """Closes the connection after what has been written; the end of the body is missing.

        A reset would be harsher, but it takes back bytes that the client has not read yet.
        """
        if self._request.transport is not None:
            self._request.transport.close()


async def send_stream(
    items: Iterable[Piece | Ending], output: Output, pace: Pace, record: RequestRecord, journal: Journal
) -> None:
    """Sends a stream, and ends it as its `Ending` says or in order. What is due goes out in one write."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    batch: list[Piece] = []
    size = index = 0
    ending = Ending.CLOSE

    async def flush() -> None:
        nonlocal size
        # A client may go away between the writes of a split body: then the pieces before have been sent.
        writes = [[piece] for piece in batch] if output.splits else [batch] if batch else []
        for pieces in writes:
            await output.write(b"".join(piece.data for piece in pieces))
            record.sent(pieces)
            journal.changed()
        batch.clear()
        size = 0

    for item in items:
        if isinstance(item, Ending):
            await flush()
            record.fail(item.value)
            journal.changed()
            ending = item
            break
        ahead = start + pace.due(index) - loop.time() if item.counted else 0.0
        if ahead > 0:
            await flush()
            await asyncio.sleep(ahead)
        elif size >= BATCH_BYTES:
            await flush()
            await asyncio.sleep(0)  # others want to write, too
        batch.append(item)
        size += len(item.data)
        index += item.counted
    await flush()
    await finish(ending, output)


async def finish(ending: Ending, output: Output) -> None:
    match ending:
        case Ending.CLOSE:
            await output.close()
        case Ending.CUT:
            output.cut()
        case Ending.STALL:
            await asyncio.Event().wait()  # until the client or the server goes away
