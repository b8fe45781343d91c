"""One subscription connection: subscribed to its channels, probed when it is silent, replaced when it breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Connection
from redis.exceptions import MovedError, RedisError

from deltafan.broker.address import Node
from deltafan.broker.slots import slot_of

OnMessage = Callable[[bytes], None]
OnGap = Callable[[], None]
RECONNECT_MIN, RECONNECT_MAX = 0.05, 2.0


@dataclass(slots=True)
class Channel:
    """A channel that somebody listens to; it may pass from one connection to another."""

    name: bytes
    on_message: OnMessage
    on_gap: OnGap
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    was_live: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """The protocol's words for subscribing."""

    subscribe: str
    unsubscribe: str
    message: bytes
    confirmed: bytes
    dropped: bytes


PLAIN: Final = Words("SUBSCRIBE", "UNSUBSCRIBE", b"message", b"subscribe", b"unsubscribe")
SHARDED: Final = Words("SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage", b"ssubscribe", b"sunsubscribe")


class Line:
    """A connection and the channels on it. `run` serves it until it is cancelled.

    :param connect: makes a connection, not yet connected.
    :param node: of a cluster; there the channels are sharded, and may move away.
    :param lost: told of every connection that breaks.
    :param strayed: told of channels that this node serves no more, with who does where it has said so.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        interval: float,
        *,
        node: Node | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        strayed: Callable[[Collection[Channel], MovedError | None], None] | None = None,
    ) -> None:
        self.node = node
        self.channels: dict[bytes, Channel] = {}
        self.reconnects = 0
        self.awaited: dict[bytes, int] = {}  # subscribe commands sent and not yet confirmed
        self.connection: Connection | None = None
        self._connect = connect
        self._interval = interval
        self._lost = lost
        self._strayed = strayed
        self._words = PLAIN if node is None else SHARDED
        self._left: dict[bytes, int] = {}  # unsubscribe commands sent and not yet confirmed
        self._pinged = False
        self._sending: set[asyncio.Task[None]] = set()

    async def add(self, channel: Channel) -> None:
        """Subscribe. Where there is no connection now, the next one does it."""
        self.channels[channel.name] = channel
        await self._send_subscribe([channel.name])

    async def drop(self, channel: Channel) -> None:
        """Unsubscribe."""
        if self.channels.get(channel.name) is channel:
            del self.channels[channel.name]
            if self.connection is not None:
                self._left[channel.name] = self._left.get(channel.name, 0) + 1
            await self._send(self._words.unsubscribe, channel.name)

    async def hang_up(self) -> None:
        """Give the present connection up: it leads to the wrong server."""
        if self.connection is not None:
            await close(self.connection)

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        wait = RECONNECT_MIN
        while True:
            connection = self._connect()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                self.awaited.clear()
                self._left.clear()
                self._pinged = False
                self.connection = connection
                await self._send_subscribe(list(self.channels))
                wait = RECONNECT_MIN
                await self._read(connection)
            except (RedisError, OSError, TimeoutError):
                pass  # whatever broke it, a new connection and a read of the log mend it
            finally:
                self.connection = None
                await close(connection)
            self.reconnects += 1
            for channel in self.channels.values():
                channel.confirmed.clear()
            if self._lost is not None:
                await self._lost()
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 2, RECONNECT_MAX)

    async def _send_subscribe(self, names: Collection[bytes]) -> None:
        """One command for all; of sharded channels one each, because a command's channels must share a slot."""
        if self.connection is None or not names:
            return
        for name in names:
            self.awaited[name] = self.awaited.get(name, 0) + 1
        if self.node is None:
            await self._send(self._words.subscribe, *names)
        else:
            for name in names:
                await self._send(self._words.subscribe, name)

    async def _send(self, command: str, *args: bytes) -> None:
        """Send on the present connection, if there is one. A caller that is cancelled meanwhile must not break off what
        is being written: redis-py would close the connection, which is everybody's.
        """
        if self.connection is not None:
            sending = asyncio.create_task(_write(self.connection, self.connection.pack_command(command, *args)))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            await asyncio.shield(sending)

    async def _read(self, connection: Connection) -> None:
        while True:
            try:
                reply = await connection.read_response(timeout=self._interval, disconnect_on_error=False)
            except MovedError as error:
                self._refused(error)
                continue
            if reply is None:  # nothing came in time
                if self._pinged or self.awaited:
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
        channel = self.channels.get(name)
        if kind == self._words.message:
            if channel is not None and channel.confirmed.is_set():
                channel.on_message(data)
        elif kind == self._words.confirmed:
            left = self.awaited.pop(name, 1) - 1
            if left > 0:  # of a subscription that was given up and taken again meanwhile
                self.awaited[name] = left
            if left > 0 or channel is None:
                return
            channel.confirmed.set()
            if channel.was_live:
                channel.on_gap()
            channel.was_live = True
        elif kind == self._words.dropped and self.node is not None:
            left = self._left.pop(name, 0) - 1
            if left > 0:
                self._left[name] = left
            elif left < 0 and channel is not None:  # not our doing: the slot has gone to another node
                self._stray([channel], None)

    def _refused(self, error: MovedError) -> None:
        """The node does not serve a slot whose channels were asked of it."""
        names = [name for name in (*self.awaited, *self._left) if slot_of(name) == error.slot_id]
        gone = [self.channels[name] for name in names if name in self.channels and name in self.awaited]
        for name in names:
            self.awaited.pop(name, None)
            self._left.pop(name, None)
        self._stray(gone, error)

    def _stray(self, channels: Collection[Channel], error: MovedError | None) -> None:
        for channel in channels:
            self.channels.pop(channel.name, None)
            channel.confirmed.clear()
        if self._strayed is not None:
            self._strayed(channels, error)


async def _write(connection: Connection, data: Any) -> None:
    if not connection.is_connected:
        return  # redis-py would connect again, and nobody would read what comes
    try:
        await connection.send_packed_command(data, check_health=False)
    except (RedisError, OSError, AttributeError):  # the last: it was closed just now, and redis-py has no writer left
        return  # the reader meets the same failure and reconnects


async def close(connection: Connection) -> None:
    """At once: there is nothing in it that a second cancellation could cut short."""
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        return
