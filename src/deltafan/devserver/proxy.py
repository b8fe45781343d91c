"""A TCP proxy that fails as networks do: it delays, swallows, holds back, cuts, or cuts after a number of bytes.

It stands before one server, and its faults are told to it while it runs:

    async with proxied("redis://127.0.0.1:6379/0") as proxy:
        worker_url = proxy.url("redis://127.0.0.1:6379/0")
        proxy.silence()
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

CHUNK = 64 * 1024
"""Bytes passed on at once at the most."""
_PORTS = {"redis": 6379, "rediss": 6379, "http": 80, "https": 443}
Watch = Callable[[bytes], bool]


class Gate:
    """One direction of all connections, present and future."""

    def __init__(self) -> None:
        self.swallows = False
        """Bytes vanish; the sockets look healthy."""
        self.delay = 0.0
        """Seconds that each piece takes longer, one after another."""
        self.cut_after: int | None = None
        """Reset each connection that begins from now on when it has passed so many bytes in this direction."""
        self._open = asyncio.Event()
        self._open.set()
        self._held_back: Watch | None = None
        self._let_go = asyncio.Event()

    def hold(self) -> None:
        """Keep bytes back until `flow`."""
        self._open.clear()

    def hold_back(self, watch: Watch) -> None:
        """Keep back each piece that `watch` knows, and what its connection sends after it, until `flow`. All other
        connections go on. What is held arrives late, even when its sender has given up or died meanwhile.
        """
        self._held_back = watch
        self._let_go.clear()

    def flow(self) -> None:
        """Pass everything, at once."""
        self.swallows, self.delay, self.cut_after = False, 0.0, None
        self._held_back = None
        self._let_go.set()
        self._open.set()

    async def passage(self, data: bytes) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._open.wait()
        if self._held_back is not None and self._held_back(data):
            await self._let_go.wait()


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    left: dict[Gate, int] = field(default_factory=dict)
    """Bytes it may still pass through a gate, where that is limited."""
    silent: bool = False
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def port(self) -> int:
        """By which the server knows it."""
        return int(self.server.get_extra_info("sockname")[1])

    def abort(self) -> None:
        self.aborted.set()
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Stands before one server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self.up = Gate()
        """From clients to the server."""
        self.down = Gate()
        """From the server to clients."""
        self.accepted = 0
        """Connections taken so far."""
        self._refuses = False
        self._cut_on: Watch | None = None
        self.was_cut = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def stand_before(self, url: str) -> None:
        """Pass new connections to another server, such as the same one on another port."""
        self._target = _address(url)

    @property
    def ports(self) -> set[int]:
        """By which the server knows the connections that are open now."""
        return {connection.port for connection in self._connections}

    def url(self, url: str) -> str:
        """The server's URL, by way of us."""
        parts = urlsplit(url)
        who, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{who}{at}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for connection in tuple(self._connections):
            connection.abort()

    def go_away(self) -> None:
        """Reset every connection and take no more, as a server that has ended."""
        self._refuses = True
        self.cut()

    def come_back(self) -> None:
        self._refuses = False

    def silence(self, ports: Collection[int] | None = None) -> None:
        """The present connections swallow everything, both ways, for ever: half-open sockets. New ones are sound.

        :param ports: only those that the server knows by these ports, such as those of `CLIENT LIST TYPE pubsub`.
        """
        for connection in self._connections:
            if ports is None or connection.port in ports:
                connection.silent = True

    def cut_after_request(self, watch: Watch) -> None:
        """Once, pass the request that `watch` knows on to the server, and cut its connection before the answer.

        For servers that speak Redis's protocol.
        """
        self._cut_on = watch
        self.was_cut.clear()

    def heal(self) -> None:
        """Be a plain proxy again. Connections that have been silenced stay so."""
        self.come_back()
        self.up.flow()
        self.down.flow()

    async def aclose(self) -> None:
        """Reset every connection, and wait until nothing of it is left. For when no more are taken."""
        self._refuses = True
        self.up.flow()
        self.down.flow()
        while self._serving:  # one that is still being made can be reset when it has been
            self.cut()
            await asyncio.wait(tuple(self._serving), timeout=0.1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, until either side ends it."""
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        if self._refuses:
            writer.transport.abort()
            return
        self.accepted += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except (OSError, ssl.SSLError):
            writer.transport.abort()
            return
        connection = _Connection(writer, server_writer)
        connection.left = {g: g.cut_after for g in (self.up, self.down) if g.cut_after is not None}
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(connection, reader))
                group.create_task(self._answers(connection, server_reader))
        except* (OSError, EOFError):
            pass
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _requests(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async for data in _passing(reader, self.up, connection):
            cuts = self._cut_on is not None and self._cut_on(data)
            if cuts:
                self._cut_on = None
                self.down.hold()
            await _pass_on(data, connection.server)
            if cuts:
                try:
                    await self._applied()
                finally:  # also when the server ends before that
                    connection.abort()
                    self.down.flow()
                    self.was_cut.set()
        await _end(connection, connection.server)

    async def _answers(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async for data in _passing(reader, self.down, connection):
            await _pass_on(data, connection.client)
        await _end(connection, connection.client)

    async def _applied(self) -> None:
        """The server works in order: when it has answered a PING that was sent later, it has done the request."""
        reader, other = await asyncio.open_connection(*self._target)
        other.write(b"PING\r\n")
        await reader.readline()
        other.close()


async def _pass_on(data: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(data)
    await writer.drain()


async def _end(connection: _Connection, other: asyncio.StreamWriter) -> None:
    """One side has ended, and so will the other when it has everything. A half-open socket does not even show that."""
    if connection.silent:
        await connection.aborted.wait()
    other.close()
    await other.wait_closed()
    raise EOFError


async def _passing(reader: asyncio.StreamReader, gate: Gate, connection: _Connection) -> AsyncIterator[bytes]:
    while data := await reader.read(CHUNK):
        await gate.passage(data)
        if gate.swallows or connection.silent:
            continue
        left = connection.left.get(gate)
        if left is None:
            yield data
            continue
        connection.left[gate] = left - len(data)
        yield data[:left]
        if len(data) >= left:
            raise EOFError


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _PORTS.get(parts.scheme, 0)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy on a free port of 127.0.0.1, before the server of a URL."""
    proxy = Proxy(*_address(url))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
        await server.wait_closed()
