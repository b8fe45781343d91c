"""The emulator as a running server, in a test's own loop, inside another program or for the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from deltafan.devserver.pusher.app import create_app
from deltafan.devserver.pusher.faults import Faults
from deltafan.devserver.pusher.hub import Hub
from deltafan.devserver.pusher.journal import Message, RequestRecord
from deltafan.devserver.pusher.settings import App
from deltafan.errors import ConfigurationError

_LAST_SECONDS: Final = 0.1
"""For requests that still run when everything has been closed. Never 0, which aiohttp takes for "without end"."""
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class PusherEmulator:
    """A running emulator."""

    def __init__(self, hub: Hub, host: str, port: int) -> None:
        self._hub = hub
        self.host = host
        """Where clients on this machine connect."""
        self.port = port

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at the end. WebSockets connect to the same place."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def app_id(self) -> str:
        return self._hub.app.app_id

    @property
    def key(self) -> str:
        return self._hub.app.key

    @property
    def secret(self) -> str:
        return self._hub.app.secret

    @property
    def variables(self) -> dict[str, str]:
        """The environment that points a program at this server."""
        return {
            "PUSHER_APP_ID": self.app_id,
            "PUSHER_KEY": self.key,
            "PUSHER_SECRET": self.secret,
            "PUSHER_HOST": self.host,
            "PUSHER_PORT": str(self.port),
            "PUSHER_TLS": "false",
        }

    @property
    def faults(self) -> Faults:
        """Of the HTTP API; `faults.set("status=500*3")` orders some, `faults.set()` none."""
        return self._hub.faults

    @property
    def messages(self) -> list[Message]:
        """The most recent 5,000 events published through the HTTP API, oldest first; one a channel."""
        return self._hub.journal.messages

    @property
    def requests(self) -> list[RequestRecord]:
        """The most recent 5,000 requests to the HTTP API, oldest first."""
        return self._hub.journal.requests

    @property
    def connection_count(self) -> int:
        return len(self._hub.connections)

    @property
    def undelivered_webhooks(self) -> int:
        """Events for the webhook that were dropped."""
        return self._hub.webhooks.dropped

    def on(self, channel: str) -> list[Message]:
        """The messages of one channel."""
        return [message for message in self.messages if message.channel == channel]

    def subscription_count(self, channel: str) -> int:
        """Connections that are subscribed to a channel."""
        return self._hub.channels.subscription_count(channel)

    def disconnect_all(self, code: int | None = None, reason: str = "") -> None:
        """Ends every WebSocket: cut as by a broken network, or closed in order with a code."""
        self._hub.disconnect_all(code, reason)

    def clear(self) -> None:
        """Forgets messages and requests; their numbers go on."""
        self._hub.journal.clear()

    async def until(self, predicate: Callable[[PusherEmulator], bool], timeout: float = 10.0) -> None:
        """Waits for a request, a frame, a connection or its end to make the predicate true.

        :raises TimeoutError: it is not within `timeout` seconds.
        """
        await self._hub.until(lambda: predicate(self), timeout)


@asynccontextmanager
async def running(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    app_id: str = "1",
    key: str = "dev-key",
    secret: str | None = None,
    webhook_url: str | None = None,
    faults: Iterable[str] = (),
    activity_timeout: float = 120.0,
    pong_timeout: float = 30.0,
    max_connections: int = 1000,
    outbox_bytes: int = 4 << 20,
) -> AsyncIterator[PusherEmulator]:
    """Runs an emulator in this event loop; port 0 takes a free one.

    :param secret: a new one each time, unless it is given.
    :param faults: of the HTTP API, such as `status=500*3`; see `FAULTS`.
    :raises ValidationError: a value breaks its rule.
    :raises ConfigurationError: the address cannot be bound.
    """
    values: dict[str, Any] = {} if secret is None else {"secret": secret}
    app = App(
        app_id=app_id,
        key=key,
        webhook_url=webhook_url,
        activity_timeout=activity_timeout,
        pong_timeout=pong_timeout,
        max_connections=max_connections,
        outbox_bytes=outbox_bytes,
        **values,
    )
    hub = Hub(app, Faults(faults))
    runner = web.AppRunner(create_app(hub), access_log=None, handler_cancellation=True, shutdown_timeout=_LAST_SECONDS)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"the Pusher emulator cannot listen on {host}:{port}: {reason}") from None
        yield PusherEmulator(hub, _WILDCARDS.get(host, host), int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()
