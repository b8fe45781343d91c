"""All subscriptions of a process: one connection, however many channels; one a node on a cluster.

Contract: once `subscribe` has returned, every message that Redis publishes on the channel reaches `on_message`, in
order, while the connection lives. When it was replaced, messages may be missing, and `on_gap` is called after the new
one is confirmed: the listener reads the log. A connection that is silent for `probe_interval` is sent a PING; one that
does not answer within another interval is replaced, however healthy its socket looks.

On a cluster a channel is on the connection to the node that serves its slot. When the slot goes to another node, which
the old one says (an unasked `sunsubscribe`, MOVED) or the slot map, looked at every `probe_interval`, the channel goes
after it, as over a replaced connection. Behind Sentinel the connection is given up as soon as the sentinels name
another primary: one that was cut off and demoted would go on looking healthy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from redis.exceptions import MovedError, RedisError

from deltafan.broker.address import Node
from deltafan.broker.connections import Connections
from deltafan.broker.line import RECONNECT_MIN, Channel, Line, OnGap, OnMessage
from deltafan.broker.slots import SlotMap, slot_of
from deltafan.errors import BrokerUnavailable

__all__ = ["OnGap", "OnMessage", "Subscriber"]
_LOOK_AGAIN: Final = 0.5
"""Seconds between two looks at the slot map, at the most, while a channel is without a working connection."""
_ANYWHERE: Final = None
"""The place of the one connection to a single Redis."""


class Subscriber:
    """Open it with `async with`; it reconnects by itself until it is closed.

    :param on_loss: told whenever a connection breaks, cannot be made, or is silent; it must not block.
    """

    def __init__(self, connections: Connections, on_loss: Callable[[], None] | None = None) -> None:
        self._connections = connections
        self._on_loss = on_loss
        self._interval = connections.settings.probe_interval
        self._slots = connections.slots
        self._channels: dict[bytes, Channel] = {}
        self._lines: dict[Node | None, Line] = {}
        self._tasks: dict[Node | None, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._astray = asyncio.Event()
        self._ended_reconnects = 0

    @property
    def reconnects(self) -> int:
        """How often a connection was replaced, all together."""
        return self._ended_reconnects + sum(line.reconnects for line in self._lines.values())

    async def __aenter__(self) -> Self:
        if self._slots is not None:
            self._watching = asyncio.create_task(self._follow_slots(self._slots), name="deltafan-subscriber-slots")
            return self
        line = self._line(_ANYWHERE)
        if self._connections.sentinels is not None:
            self._connections.sentinels.tell(line.hang_up)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connections.sentinels is not None:
            self._connections.sentinels.tell_no_more(self._line(_ANYWHERE).hang_up)
        tasks: list[asyncio.Task[Any]] = [*self._tasks.values()]
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def subscribe(self, channel: str, on_message: OnMessage, on_gap: OnGap, *, keep: bool = False) -> None:
        """Listen on a channel; returns when Redis has confirmed it. A channel has one listener.

        :param keep: it stays wanted where Redis does not confirm in time, and is confirmed whenever that is possible.
        :raises BrokerUnavailable: when Redis does not confirm within the command timeout.
        """
        name = channel.encode()
        before = self._channels.get(name)
        entry = self._channels[name] = Channel(name, on_message, on_gap)
        try:
            async with asyncio.timeout(self._connections.settings.command_timeout):
                if before is not None:
                    await self._leave(before)
                await self._settle(entry)
                await entry.confirmed.wait()
        except BaseException as error:
            if self._channels.get(name) is entry and not (keep and isinstance(error, TimeoutError)):
                await self.unsubscribe(channel)
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable("Redis cannot be reached: the subscription was not confirmed") from None
            raise

    async def unsubscribe(self, channel: str) -> None:
        entry = self._channels.pop(channel.encode(), None)
        if entry is not None:
            await self._leave(entry)

    def _line(self, node: Node | None) -> Line:
        """The connection to a node, made when there is none yet."""
        line = self._lines.get(node)
        if line is None:
            lost, strayed = partial(self._lost, node), self._strayed if node is not None else None
            connect = partial(self._connections.subscription, node)
            line = self._lines[node] = Line(connect, self._interval, node=node, lost=lost, strayed=strayed)
            name = "deltafan-subscriber" if node is None else f"deltafan-subscriber-{node[0]}:{node[1]}"
            self._tasks[node] = asyncio.create_task(line.run(), name=name)
        return line

    async def _settle(self, entry: Channel) -> None:
        """Put a channel on the line where it belongs now; where nobody can tell, the watcher does it later."""
        if self._slots is None:
            await self._line(_ANYWHERE).add(entry)
            return
        try:
            node = await self._slots.node(slot_of(entry.name))
        except (RedisError, OSError):
            self._astray.set()
            return
        if self._channels.get(entry.name) is entry:  # else it was left meanwhile
            await self._line(node).add(entry)

    async def _leave(self, entry: Channel) -> None:
        for line in tuple(self._lines.values()):
            await line.drop(entry)

    # On a cluster

    async def _lost(self, node: Node | None) -> None:
        """A connection broke: of a cluster maybe its node did, and others serve its slots soon."""
        if self._on_loss is not None:
            self._on_loss()
        if self._slots is not None and node is not None:
            self._slots.failed(node)
            self._astray.set()

    def _strayed(self, channels: Collection[Channel], error: MovedError | None) -> None:
        if self._slots is not None and error is not None:
            self._slots.moved(error.slot_id, error.node_addr)
        self._astray.set()

    async def _follow_slots(self, slots: SlotMap) -> None:
        """Bring each channel to the node that serves its slot, whenever there is reason to look."""
        wait = RECONNECT_MIN
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._astray.wait()
            except TimeoutError:
                pass
            self._astray.clear()
            try:
                await slots.refresh()
                homeless = await self._bring_home(slots)
            except (RedisError, OSError):
                homeless = True
            if not homeless:
                wait = RECONNECT_MIN
                continue
            self._astray.set()
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 2, _LOOK_AGAIN)

    async def _bring_home(self, slots: SlotMap) -> bool:
        """Whether a channel is still without a home, or on a line that does not work."""
        homeless = False
        for entry in tuple(self._channels.values()):
            node = await slots.node(slot_of(entry.name))
            line = next((line for line in self._lines.values() if line.channels.get(entry.name) is entry), None)
            if line is None or line.node != node:
                entry.confirmed.clear()
                if line is not None:
                    await line.drop(entry)
                if self._channels.get(entry.name) is entry:
                    await self._line(node).add(entry)
                    homeless = True  # until it has been confirmed there
            elif line.connection is None:
                homeless = True
        for idle in [line for line in self._lines.values() if not line.channels]:
            await self._end(idle)
        return homeless

    async def _end(self, line: Line) -> None:
        self._ended_reconnects += line.reconnects
        del self._lines[line.node]
        task = self._tasks.pop(line.node)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
