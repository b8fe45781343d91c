"""One subscription connection, however many channels.

Contract: once `subscribe` has returned, every message that Redis publishes on the channel reaches `on_message`, in
order, while the connection lives. When it was replaced, messages may be missing, and `on_gap` is called after the new
one is confirmed: the listener reads the log. A connection that is silent for `probe_interval` is sent a PING; one that
does not answer within another interval is replaced, however healthy its socket looks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Connection
from redis.exceptions import RedisError

from deltafan.broker.connections import Connections
from deltafan.errors import BrokerUnavailable

OnMessage = Callable[[bytes], None]
OnGap = Callable[[], None]
_RECONNECT_MIN, _RECONNECT_MAX = 0.05, 2.0


@dataclass(slots=True)
class _Channel:
    on_message: OnMessage
    on_gap: OnGap
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    was_live: bool = False


class Subscriber:
    """Open it with `async with`; it reconnects by itself until it is closed."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._interval = connections.settings.probe_interval
        self._channels: dict[bytes, _Channel] = {}
        self._awaited: dict[bytes, int] = {}  # SUBSCRIBE commands sent and not yet confirmed
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._pinged = False
        self.reconnects = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="deltafan-subscriber")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def subscribe(self, channel: str, on_message: OnMessage, on_gap: OnGap) -> None:
        """Listen on a channel; returns when Redis has confirmed it. A channel has one listener.

        :raises BrokerUnavailable: when Redis does not confirm within the command timeout.
        """
        name = channel.encode()
        entry = self._channels[name] = _Channel(on_message, on_gap)
        await self._send("SUBSCRIBE", name)
        try:
            async with asyncio.timeout(self._connections.settings.command_timeout):
                await entry.confirmed.wait()
        except BaseException as error:
            if self._channels.get(name) is entry:
                await self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable("Redis cannot be reached: the subscription was not confirmed") from None
            raise

    async def unsubscribe(self, channel: str) -> None:
        if self._channels.pop(channel.encode(), None) is not None:
            await self._send("UNSUBSCRIBE", channel.encode())

    async def _send(self, command: str, *args: bytes) -> None:
        """Send on the present connection. Where there is none, the reader will subscribe to everything anew."""
        connection = self._connection
        if connection is None:
            return
        if command == "SUBSCRIBE":
            for name in args:
                self._awaited[name] = self._awaited.get(name, 0) + 1
        try:
            await connection.send_packed_command(connection.pack_command(command, *args), check_health=False)
        except (RedisError, OSError):
            return  # the reader meets the same failure and reconnects

    async def _run(self) -> None:
        wait = _RECONNECT_MIN
        while True:
            connection = self._connections.subscription()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                self._awaited.clear()
                self._pinged = False
                self._connection = connection
                if self._channels:
                    await self._send("SUBSCRIBE", *self._channels)
                wait = _RECONNECT_MIN
                await self._read(connection)
            except (RedisError, OSError, TimeoutError):
                pass  # whatever broke it, a new connection and a read of the log mend it
            finally:
                self._connection = None
                await _close(connection)
            self.reconnects += 1
            for entry in self._channels.values():
                entry.confirmed.clear()
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 2, _RECONNECT_MAX)

    async def _read(self, connection: Connection) -> None:
        while True:
            reply = await connection.read_response(timeout=self._interval, disconnect_on_error=False)
            if reply is None:  # nothing came in time
                if self._pinged or self._awaited:
                    raise TimeoutError("the subscription connection does not answer")
                self._pinged = True
                await self._send("PING")
                continue
            self._pinged = False
            self._dispatch(reply)

    def _dispatch(self, reply: Any) -> None:
        if not isinstance(reply, list) or len(reply) < 3:
            return  # the answer to a PING
        kind, name, data = reply[0], reply[1], reply[2]
        entry = self._channels.get(name)
        if kind == b"message":
            if entry is not None and entry.confirmed.is_set():
                entry.on_message(data)
        elif kind == b"subscribe":
            left = self._awaited.pop(name, 1) - 1
            if left > 0:  # of a subscription that was given up and taken again meanwhile
                self._awaited[name] = left
            if left > 0 or entry is None:
                return
            entry.confirmed.set()
            if entry.was_live:
                entry.on_gap()
            entry.was_live = True


async def _close(connection: Connection) -> None:
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        return
