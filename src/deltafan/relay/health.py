"""`/healthz`: the process lives. `/readyz`: it can serve. And the wire format's schema, for whoever reads events."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, cast

from aiohttp import web

from deltafan.broker.connections import redis_errors
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.relay.answers import answer, unavailable
from deltafan.relay.context import QUEUE, STREAMS
from deltafan.wire import schema

_schema = cache(schema)
READY_SECONDS = 2.0
"""How long Redis may take to answer before the relay calls itself not ready. Probes give up after a few seconds."""


async def healthz(_: web.Request) -> web.Response:
    return answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    if request.app[STREAMS].draining:
        raise unavailable("this relay is shutting down", "draining")
    try:
        async with asyncio.timeout(READY_SECONDS):
            with redis_errors():
                await cast("Any", request.app[QUEUE].connections.commands.ping())
    except TimeoutError:
        raise unavailable(f"Redis does not answer within {READY_SECONDS:g} s") from None
    except BrokerUnavailable:
        raise unavailable("Redis cannot be reached, or does not serve now") from None
    except ConfigurationError:
        raise unavailable("Redis refuses the relay's credentials", "configuration") from None
    return answer({"status": "ready"})


async def event_schema(_: web.Request) -> web.Response:
    return answer(_schema(), headers={"Cache-Control": "public, max-age=3600"})
