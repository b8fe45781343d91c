"""A TCP proxy that fails as networks do: it cuts, swallows, or holds back, in either direction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

CHUNK = 64 * 1024
Watch = Callable[[bytes], bool]


class Gate:
    """One direction of all connections, present and future."""

    def __init__(self) -> None:
        self.swallows = False
        """Bytes vanish; the sockets look healthy."""
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Keep bytes back until `flow`."""
        self._open.clear()

    def flow(self) -> None:
        self.swallows = False
        self._open.set()

    async def passage(self) -> None:
        await self._open.wait()


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: bool = False

    def abort(self) -> None:
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
        self._refuses = False
        self._cut_on: Watch | None = None
        self.was_cut = asyncio.Event()
        self._connections: set[_Connection] = set()

    def url(self, url: str) -> str:
        """The server's URL, by way of us."""
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=f"127.0.0.1:{self.port}"))

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

    def silence(self) -> None:
        """The present connections swallow everything, both ways, for ever: half-open sockets. New ones are sound."""
        for connection in self._connections:
            connection.silent = True

    def cut_after_request(self, watch: Watch) -> None:
        """Once, pass the request that `watch` knows on to the server, and cut its connection before the answer."""
        self._cut_on = watch
        self.was_cut.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        self.accepted += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, server_writer)
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
            connection.server.write(data)
            await connection.server.drain()
            if cuts:
                await self._applied()
                connection.abort()
                self.down.flow()
                self.was_cut.set()
        raise EOFError

    async def _answers(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async for data in _passing(reader, self.down, connection):
            connection.client.write(data)
            await connection.client.drain()
        raise EOFError

    async def _applied(self) -> None:
        """The server works in order: when it has answered a PING that was sent later, it has done the request."""
        reader, other = await asyncio.open_connection(*self._target)
        other.write(b"PING\r\n")
        await reader.readline()
        other.close()


async def _passing(reader: asyncio.StreamReader, gate: Gate, connection: _Connection) -> AsyncIterator[bytes]:
    while data := await reader.read(CHUNK):
        await gate.passage()
        if not (gate.swallows or connection.silent):
            yield data


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server of a URL."""
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 6379)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.up.flow()
        proxy.down.flow()
        proxy.cut()
        await server.wait_closed()
