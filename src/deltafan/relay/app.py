"""The relay as an aiohttp application."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from deltafan.broker.queue import AsyncQueue
from deltafan.relay import follow, health, jobs, pusher_auth
from deltafan.relay.access import access
from deltafan.relay.accesslog import access_log
from deltafan.relay.answers import errors, told_in_log
from deltafan.relay.context import OUTAGE, OWNERSHIP, PUSHER, QUEUE, STREAMS, TOKEN_KEYS
from deltafan.relay.cors import check_origins, common_headers, preflight
from deltafan.relay.inflight import IN_FLIGHT, InFlight, count
from deltafan.relay.keys import parse_keys
from deltafan.relay.limits import Limits
from deltafan.relay.outage import RelayOutage
from deltafan.relay.ownership import Ownership
from deltafan.relay.page import add_pages
from deltafan.relay.scripts import add_scripts
from deltafan.relay.streams import Streams
from deltafan.settings import PusherSettings, RelaySettings, TokenSettings
from deltafan.telemetry.outage import Outage
from deltafan.tokens import TokenKeys


def create_app(
    queue: AsyncQueue,
    settings: RelaySettings,
    tokens: TokenSettings | None = None,
    pusher: PusherSettings | None = None,
    outage: Outage | None = None,
) -> web.Application:
    """The relay on a queue, which stays the caller's to close. Run it with `server.serve`, or in a runner of one's own.

    :param tokens: the keys of stream tokens; without, there are none.
    :param pusher: where Pusher is; without, there is none.
    :param outage: told when Redis is away or refuses, and when it is back; without, that is logged.
    :raises ConfigurationError: a key, an origin or a network is not right.
    """
    keys = parse_keys(settings.api_keys)
    token_keys = TokenKeys.of(tokens or TokenSettings())
    check_origins(settings.cors_origins)
    met = RelayOutage(queue, outage or Outage(told_in_log))
    app = web.Application(
        middlewares=[
            count,
            access_log,
            errors(met),
            preflight(settings.cors_origins),
            access(keys, token_keys, settings.cors_origins, Limits(settings)),
        ],
        client_max_size=queue.limits.max_bytes,
    )
    app[QUEUE] = queue
    app[OUTAGE] = met
    app[STREAMS] = Streams(settings)
    app[OWNERSHIP] = Ownership(keys.tenants | frozenset(settings.tenants))
    app[PUSHER] = pusher or PusherSettings()
    if token_keys is not None:
        app[TOKEN_KEYS] = token_keys
    app[IN_FLIGHT] = InFlight()
    app.on_response_prepare.append(common_headers(settings.cors_origins))
    app.cleanup_ctx.append(_heartbeats)
    app.cleanup_ctx.append(_outages)
    app.on_shutdown.append(_drain)
    router = app.router
    router.add_post("/v1/jobs", jobs.enqueue)
    router.add_get("/v1/jobs", jobs.listing)
    router.add_get("/v1/jobs/{id}", jobs.status)
    router.add_post("/v1/jobs/{id}/cancel", jobs.cancel)
    router.add_post("/v1/jobs/{id}/interest", jobs.interest)
    # A HEAD of a stream would have nothing to say and no end.
    router.add_get("/v1/jobs/{id}/events", follow.events, allow_head=False)
    router.add_post(pusher_auth.AUTH_URL, pusher_auth.auth)
    router.add_get("/healthz", health.healthz)
    router.add_get("/readyz", health.readyz)
    router.add_get("/schema/event.json", health.event_schema)
    add_scripts(router)
    add_pages(app, settings, keys, pusher)
    return app


async def _heartbeats(app: web.Application) -> AsyncIterator[None]:
    async with app[STREAMS].beating():
        yield


async def _outages(app: web.Application) -> AsyncIterator[None]:
    async with app[OUTAGE].watching():
        yield


async def _drain(app: web.Application) -> None:
    app[STREAMS].drain()
