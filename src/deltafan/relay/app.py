"""The relay as an aiohttp application."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from deltafan.broker.queue import AsyncQueue
from deltafan.relay import follow, health, jobs
from deltafan.relay.access import access, parse_keys
from deltafan.relay.accesslog import access_log
from deltafan.relay.answers import errors
from deltafan.relay.context import QUEUE, STREAMS
from deltafan.relay.cors import check_origins, common_headers, preflight
from deltafan.relay.inflight import IN_FLIGHT, InFlight, count
from deltafan.relay.page import add_page
from deltafan.relay.streams import Streams
from deltafan.settings import RelaySettings


def create_app(queue: AsyncQueue, settings: RelaySettings) -> web.Application:
    """The relay on a queue, which stays the caller's to close. Run it with `server.serve`, or in a runner of one's own.

    :raises ConfigurationError: an entry of `api_keys` or `cors_origins` is not right.
    """
    keys = parse_keys(settings.api_keys)
    check_origins(settings.cors_origins)
    app = web.Application(
        middlewares=[
            count,
            access_log,
            errors,
            preflight(settings.cors_origins),
            access(keys, settings.cors_origins),
        ],
        client_max_size=queue.limits.max_bytes,
    )
    app[QUEUE] = queue
    app[STREAMS] = Streams(settings)
    app[IN_FLIGHT] = InFlight()
    app.on_response_prepare.append(common_headers(settings.cors_origins))
    app.cleanup_ctx.append(_heartbeats)
    app.on_shutdown.append(_drain)
    router = app.router
    router.add_post("/v1/jobs", jobs.enqueue)
    router.add_get("/v1/jobs", jobs.listing)
    router.add_get("/v1/jobs/{id}", jobs.status)
    router.add_post("/v1/jobs/{id}/cancel", jobs.cancel)
    # A HEAD of a stream would have nothing to say and no end.
    router.add_get("/v1/jobs/{id}/events", follow.events, allow_head=False)
    router.add_get("/healthz", health.healthz)
    router.add_get("/readyz", health.readyz)
    router.add_get("/schema/event.json", health.event_schema)
    add_page(router, settings, keys)
    return app


async def _heartbeats(app: web.Application) -> AsyncIterator[None]:
    async with app[STREAMS].beating():
        yield


async def _drain(app: web.Application) -> None:
    app[STREAMS].drain()
