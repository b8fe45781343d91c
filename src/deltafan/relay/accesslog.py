"""One line a request: method, path, status, time, tenant, peer, and why it was refused. Never a query string, which may
hold a secret.
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from deltafan.relay.access import ADDRESS
from deltafan.relay.answers import CLIENT_LEFT, CODE
from deltafan.relay.principal import PRINCIPAL

_PATH_CHARS = 200

logger = logging.getLogger("deltafan.relay.access")


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Logs when the answer is complete; a stream's line comes at its end, and 499 says that the client left before."""
    began = time.monotonic()
    status = 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except asyncio.CancelledError:
        status = CLIENT_LEFT
        raise
    finally:
        principal = request.get(PRINCIPAL)
        logger.info(
            "%s %s %d %.1fms tenant=%s peer=%s%s",
            request.method,
            request.rel_url.raw_path[:_PATH_CHARS],
            status,
            (time.monotonic() - began) * 1000,
            principal.tenant if principal is not None else "-",
            request.get(ADDRESS) or request.remote or "-",
            f" code={request[CODE]}" if CODE in request else "",
        )
