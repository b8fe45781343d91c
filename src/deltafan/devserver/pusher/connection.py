"""One client's WebSocket: what waits for it is bounded, and who sends to it never waits."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from aiohttp import WSMsgType, web

from deltafan.devserver.pusher import messages
from deltafan.devserver.pusher.rules import CLIENT_EVENTS_A_SECOND

CLOSING_SECONDS: Final = 2.0
"""For what waits and the closing handshake; then the connection is cut."""


class Connection:
    """A connection as the protocol sees it. Used in the event loop only."""

    def __init__(
        self, socket_id: str, ws: web.WebSocketResponse, transport: asyncio.Transport | None, outbox_bytes: int
    ) -> None:
        self.socket_id = socket_id
        self.user_id: str | None = None
        """The user it is signed in as."""
        self.user_info: object = None
        self.channels: set[str] = set()
        """The channels it is subscribed to."""
        self._ws = ws
        self._transport = transport
        self._limit = outbox_bytes
        self._outbox: deque[bytes] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._goodbye: tuple[int, bytes] | None = None
        self._cut = False
        self._client_events: deque[float] = deque(maxlen=CLIENT_EVENTS_A_SECOND)

    @property
    def closing(self) -> bool:
        return self._goodbye is not None or self._cut

    def send(self, message: bytes) -> None:
        """Queues a message. A client for which too much waits is cut off: it would never catch up."""
        if self.closing:
            return
        if self._waiting + len(message) > self._limit:
            self.cut()
            return
        self._outbox.append(message)
        self._waiting += len(message)
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Closes it after what waits has been sent, or cuts it off if that takes too long."""
        if not self.closing:
            self._goodbye = (code, messages.reason(reason))
            self._wake.set()
            asyncio.get_running_loop().call_later(CLOSING_SECONDS, self.cut)

    def cut(self) -> None:
        """Ends it at once and without a word, as a broken network does."""
        self._cut = True
        self._outbox.clear()
        self._wake.set()
        if self._transport is not None:
            self._transport.abort()

    async def write(self) -> None:
        """Sends what is queued, until the connection is closed, cut or lost."""
        with suppress(ConnectionError):
            while not self._cut:
                await self._wake.wait()
                self._wake.clear()
                while self._outbox:
                    message = self._outbox.popleft()
                    await self._ws.send_frame(message, WSMsgType.TEXT)
                    self._waiting -= len(message)
                if self._goodbye is not None:
                    code, reason = self._goodbye
                    await self._ws.close(code=code, message=reason)
                    return

    def may_send_client_event(self) -> bool:
        """Counts a client event; `False` when there were too many within the last second."""
        now = asyncio.get_running_loop().time()
        times = self._client_events
        if len(times) == CLIENT_EVENTS_A_SECOND and now - times[0] < 1.0:
            return False
        times.append(now)
        return True
