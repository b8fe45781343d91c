"""Case 21: a connection that is cut after any number of bytes, and resumed by its last id, gives a whole transcript.

After every single byte there is: of the HTTP head, of chunk sizes, of frames, and inside characters of several bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.events import Event, EventId, ToolCallDelta
from deltafan.sse import Decoder
from deltafan.wire import decode
from tests.e2e.relay_kit import SPEC, HandWorker, Work, running_relay
from tests.oracle import check_whole

SAYS: tuple[Event | str, ...] = (
    "é日\u2028👩‍👩‍👧",
    ToolCallDelta(index=0, call_id="c", name="f", arguments='"ὦ✓"'),
)
PARTS = 4
"""Tests that share the bytes of the replay."""
AT_ONCE = 300
"""Connections that follow one live job."""


@dataclass
class Client:
    """A browser by hand: what it has seen, and the last id of a frame that it has got whole."""

    port: int
    job_id: str
    events: list[Event] = field(default_factory=list)
    cursor: EventId | None = None

    async def connect(self, port: int) -> asyncio.StreamReader:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        last = f"Last-Event-ID: {self.cursor}\r\n" if self.cursor else ""
        self._writer.write(f"GET /v1/jobs/{self.job_id}/events HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
        return reader

    async def read(self, reader: asyncio.StreamReader) -> int:
        """Until the connection's end, whatever it is. Gives the number of bytes that have come."""
        raw, body, decoder = b"", _Body(), Decoder()
        try:
            while data := await reader.read(1 << 16):
                raw += data
                for frame in decoder.feed(body.feed(data)):
                    assert frame.event not in ("reset", "error"), frame
                    if frame.event != "heartbeat" and (event := decode(frame.data)) is not None:
                        self.events.append(event)
                        self.cursor = event.id
        except ConnectionError:
            pass
        self.close()
        return len(raw)

    def close(self) -> None:
        self._writer.close()

    async def resume(self) -> int:
        """Follow to the end, without a fault, as often as there is something left."""
        total = 0
        while not self.events or self.events[-1].type != "done":
            got = await self.read(await self.connect(self.port))
            assert got, "a sound connection brings something"
            total += got
        return total


class _Body:
    """The body of a chunked answer, as far as it has come: also the first bytes of a chunk that was cut off."""

    def __init__(self) -> None:
        self._rest = b""
        self._left: int | None = None  # bytes of the present chunk, with its newline; None: the head has not ended

    def feed(self, data: bytes) -> bytes:
        self._rest += data
        if self._left is None:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return b""
            assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
            self._rest, self._left = rest, 0
        found = b""
        while self._rest:
            if self._left == 0:
                size, end, rest = self._rest.partition(b"\r\n")
                if not end:
                    break
                self._rest, self._left = rest, int(size, 16) + 2
            piece, self._rest = self._rest[: self._left], self._rest[self._left :]
            found += piece[: max(0, self._left - 2)]
            self._left -= len(piece)
        return found


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def _client_cut_after(proxy: Proxy, count: int, relay: str, job_id: str) -> tuple[Client, asyncio.StreamReader]:
    """A client whose connection is up, and is cut when it has got so many bytes."""
    proxy.down.cut_after = count
    client, before = Client(_port(relay), job_id), proxy.open
    reader = await client.connect(proxy.port)
    while proxy.open == before:  # its own number of bytes is taken by then
        await asyncio.sleep(0)
    return client, reader


async def _told(queue: AsyncQueue, worker: HandWorker) -> Work:
    await queue.enqueue(SPEC)
    return await worker.take()


@pytest.mark.parametrize("part", range(PARTS))
async def test_the_replay_of_an_ended_job_cut_after_any_byte_is_resumed_whole(
    queue: AsyncQueue, worker: HandWorker, part: int
) -> None:
    work = await _told(queue, worker)
    await work.say(*SAYS)
    await work.finish()
    async with running_relay(queue, address_rate=0) as relay, proxied(relay.url) as proxy:
        length = await Client(_port(relay.url), work.id).resume()
        for count in range(1 + part, length, PARTS):
            client, reader = await _client_cut_after(proxy, count, relay.url, work.id)
            got = await client.read(reader)
            assert got <= count
            await client.resume()
            check_whole(client.events, work.text)


async def test_the_live_stream_of_a_job_cut_after_any_byte_of_it_is_resumed_whole(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    """From the head's end on: no client has anything before that."""
    async with running_relay(queue, address_rate=0) as relay, proxied(relay.url) as proxy:
        whole = Client(_port(relay.url), (await queue.enqueue(SPEC)).id)
        reader = await whole.connect(whole.port)
        first = len(await reader.readuntil(b"\r\n\r\n"))
        whole.close()
        length = first + 1
        await worker.take()
        while first < length:
            work = await _told(queue, worker)
            async with asyncio.TaskGroup() as group:
                whole = Client(_port(relay.url), work.id)
                to_the_end = group.create_task(whole.resume())
                clients: list[Client] = []
                for count in range(first, first + AT_ONCE):
                    client, reader = await _client_cut_after(proxy, count, relay.url, work.id)
                    clients.append(client)
                    group.create_task(_read_and_resume(client, reader))
                for event in SAYS:
                    await work.say(event)
                await work.finish()
            for client in (whole, *clients):
                check_whole(client.events, work.text)
            first, length = first + AT_ONCE, max(length, to_the_end.result())


async def _read_and_resume(client: Client, reader: asyncio.StreamReader) -> None:
    await client.read(reader)
    await client.resume()
