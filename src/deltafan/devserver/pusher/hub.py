"""The state of a running emulator, and those who wait for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deltafan.devserver.pusher.channels import Channels
from deltafan.devserver.pusher.connection import Connection
from deltafan.devserver.pusher.faults import Faults
from deltafan.devserver.pusher.journal import Journal, RequestRecord
from deltafan.devserver.pusher.messages import event
from deltafan.devserver.pusher.settings import App
from deltafan.devserver.pusher.triggers import Trigger
from deltafan.devserver.pusher.webhooks import Webhooks


class Hub:
    """Everything that the two halves, HTTP and WebSocket, share."""

    def __init__(self, app: App, faults: Faults) -> None:
        self.app = app
        self.faults = faults
        self.journal = Journal()
        self.webhooks = Webhooks(app)
        self.channels = Channels(self.webhooks.notify)
        self.connections: dict[str, Connection] = {}
        """By socket id."""
        self._waiters: list[asyncio.Future[None]] = []

    def publish(self, record: RequestRecord, trigger: Trigger) -> None:
        """Hands an event to all who shall get it."""
        self.journal.published(record, trigger)
        for channel in trigger.channels:
            self.channels.broadcast(channel, event(trigger.name, channel, trigger.data), but=trigger.socket_id)

    def opened(self, connection: Connection) -> None:
        self.connections[connection.socket_id] = connection
        self.changed()

    def closed(self, connection: Connection) -> None:
        self.connections.pop(connection.socket_id, None)
        self.channels.leave(connection)
        self.changed()

    def disconnect_all(self, code: int | None = None, reason: str = "") -> None:
        """Ends every connection: with a close code, or, without one, cut as by a broken network."""
        for connection in list(self.connections.values()):
            self.disconnect(connection, code, reason)

    def disconnect(self, connection: Connection, code: int | None, reason: str) -> None:
        """Ends one. It leaves its channels now, so that nobody takes it for a subscriber until the client has gone."""
        if code is None:
            connection.cut()
        else:
            connection.close(code, reason)
        self.channels.leave(connection)
        self.changed()

    def changed(self) -> None:
        """Wakes those who wait in `until`."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, predicate: Callable[[], bool], timeout: float) -> None:
        """Returns as soon as the predicate holds, which is asked again after each change.

        :raises TimeoutError: it does not within `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
