"""The emulator's HTTP application: routes, errors, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from deltafan.devserver.pusher import api, inspection
from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.connection import CLOSING_SECONDS
from deltafan.devserver.pusher.hub import Hub
from deltafan.devserver.pusher.rules import MAX_BODY
from deltafan.devserver.pusher.websocket import HUB, refuse, serve_client


def create_app(hub: Hub) -> web.Application:
    """The emulator as an application. Run it with `AppRunner(app, handler_cancellation=True)`; `running` does."""
    app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY)
    app[HUB] = hub
    api.add_routes(app)
    inspection.add_routes(app)
    app.router.add_get("/app/{key}", serve_client)
    app.router.add_get("/healthz", _health)
    app.cleanup_ctx.append(_webhooks)
    app.on_shutdown.append(_say_goodbye)
    return app


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is a line of text; a WebSocket on a wrong path learns it from the close code."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except ConnectionError:
        return web.Response()  # the client has gone, and nobody hears this
    except web.HTTPException as error:
        if error.status == 404 and request.headers.get("Upgrade", "").lower() == "websocket":
            with suppress(web.HTTPException):
                return await refuse(request, 4005, "Path not found")
        response = ApiError(error.status, f"{error.reason}: {request.method} {request.path}").response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response


async def _webhooks(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[HUB].webhooks.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _say_goodbye(app: web.Application) -> None:
    """Closes the connections in order; who does not answer is cut off."""
    hub = app[HUB]
    hub.disconnect_all(4200, "The server is going away")
    with suppress(TimeoutError):
        await hub.until(lambda: not hub.connections, CLOSING_SECONDS + 1)
