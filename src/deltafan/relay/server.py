"""The relay as a server: listening, and leaving in good order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from deltafan.broker.queue import AsyncQueue
from deltafan.errors import ConfigurationError
from deltafan.relay.access import check_binding
from deltafan.relay.answers import Refusal, refusal
from deltafan.relay.app import create_app
from deltafan.relay.context import STREAMS
from deltafan.relay.cors import secure
from deltafan.relay.inflight import IN_FLIGHT
from deltafan.relay.keys import parse_keys
from deltafan.settings import PusherSettings, RelaySettings, TokenSettings
from deltafan.telemetry.outage import Outage

MAX_LINE = 16 * 1024
"""Bytes of a request line; it differs from `MAX_FIELD`, by which an error tells which of the two was too long."""
MAX_FIELD = 8 * 1024
KEEP_ALIVE_SECONDS = 75.0
"""How long a connection may be idle: longer than the usual proxy's 60 s, so that the proxy closes first."""
BACKLOG = 1024
"""Connections waiting to be accepted: all followers of a relay that restarts come at once."""
_LAST_SECONDS = 0.1
"""For answers that have been drained already to leave the process. Never 0, which aiohttp takes for "without end"."""

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound

logger = logging.getLogger("deltafan.relay")


async def serve(
    queue: AsyncQueue,
    settings: RelaySettings,
    tokens: TokenSettings | None = None,
    pusher: PusherSettings | None = None,
    outage: Outage | None = None,
    *,
    ready: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set; then end the streams, let requests finish within `relay_drain`, and return.

    :param outage: see `create_app`.
    :param ready: called once with the URL, when connections are accepted.
    :raises ConfigurationError: a key is not right, the relay would be open to others, or the address cannot be bound.
    """
    check_binding(settings.host, parse_keys(settings.api_keys))
    app = create_app(queue, settings, tokens, pusher, outage)
    runner = _Runner(
        app,
        auto_decompress=False,  # a body that no handler reads would fail outside of ours; see `body`
        access_log=None,  # ours has one line a request, and no query strings
        handler_cancellation=True,  # a client that leaves ends its stream at once
        shutdown_timeout=_LAST_SECONDS,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        max_line_size=MAX_LINE,
        max_field_size=MAX_FIELD,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG).start()
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"the relay cannot listen on {settings.host}:{settings.port}: {reason}") from None
        name = _WILDCARDS.get(settings.host, settings.host)
        ready(f"http://{f'[{name}]' if ':' in name else name}:{runner.addresses[0][1]}")
        await stop.wait()
        await _drain(runner, app, settings.relay_drain)
    finally:
        await runner.cleanup()


async def _drain(runner: web.AppRunner, app: web.Application, seconds: float) -> None:
    """No new connections; streams end; what is being answered may finish. aiohttp's own way of leaving stops reading
    first, so that a request whose body is still coming could never finish."""
    for site in runner.sites:
        await site.stop()
    app[STREAMS].drain()
    try:
        async with asyncio.timeout(seconds):
            await app[IN_FLIGHT].idle()
    except TimeoutError:
        logger.warning("%d requests were cut off: not finished within %g s", app[IN_FLIGHT].count, seconds)


class _Runner(web.AppRunner):
    """aiohttp's runner, with a protocol that answers in our shape when a request cannot even be parsed."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; it can only be cut off")
        if status >= 500:
            logger.error("a request failed", exc_info=exc)
            answer = refusal(Refusal(500, "the relay failed; its log says why"))
        else:
            answer = refusal(_unreadable(exc))
        secure(answer)
        answer.force_close()
        return answer


def _unreadable(error: BaseException | None) -> Refusal:
    if isinstance(error, LineTooLong):
        if MAX_LINE in error.args:
            return Refusal(414, f"the address is longer than {MAX_LINE:,} bytes")
        return Refusal(431, f"a header is longer than {MAX_FIELD:,} bytes")
    return Refusal(400, "this is not HTTP/1.1 as it should be")
