"""Webhooks: what happens on the channels, told to a URL of the app, signed, in order, and never in anybody's way.

Pusher holds the news of a channel's or a member's end back for up to three seconds; here they go at once.
https://pusher.com/docs/channels/server_api/webhooks/
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import orjson

from deltafan.devserver.pusher.settings import App
from deltafan.devserver.pusher.signatures import sign

MAX_WAITING: Final = 1000
"""Events; what comes when so many wait is dropped and counted."""
MAX_BATCH: Final = 50
"""Events of one request."""
TIMEOUT_SECONDS: Final = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds before a repetition; each pause is twice the last."""
GIVE_UP_SECONDS: Final = 300.0
"""As long as Pusher tries."""


class Webhooks:
    """Delivers events one request after another. Without a URL it does nothing."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._wake = asyncio.Event()
        self.dropped = 0
        """Events that were never delivered: too many waited, or the receiver refused them for five minutes."""

    def notify(self, event: Mapping[str, Any]) -> None:
        """Queues an event."""
        if self._app.webhook_url is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Delivers until it is cancelled."""
        if self._app.webhook_url is None:
            return
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    if not await self._delivered(session, self._app.webhook_url, batch):
                        self.dropped += len(batch)

    async def _delivered(self, session: aiohttp.ClientSession, url: str, events: list[Mapping[str, Any]]) -> bool:
        body = orjson.dumps({"time_ms": int(time.time() * 1000), "events": events})
        headers = {
            "Content-Type": "application/json",
            "X-Pusher-Key": self._app.key,
            "X-Pusher-Signature": sign(self._app.secret, body),
        }
        end, pause = time.monotonic() + GIVE_UP_SECONDS, FIRST_PAUSE
        while True:
            try:
                async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    if 200 <= answer.status < 300:
                        return True
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # as good as a bad answer: tried again
            if time.monotonic() + pause > end:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
