"""The provider's HTTP application: routes, keys, and what becomes of a request that ends early."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from deltafan.devserver.provider.api_errors import ApiError, wrong_key
from deltafan.devserver.provider.completions import complete
from deltafan.devserver.provider.dialects import CHAT, EMBEDDINGS, RESPONSES, Dialect
from deltafan.devserver.provider.journal import (
    CLIENT_CLOSED,
    FINISHED,
    REJECTED,
    STOPPED,
    Journal,
    RequestRecord,
)
from deltafan.devserver.provider.script import Script

MODEL = "scripted"
"""The model that `GET /v1/models` lists; requests may name any."""
MAX_BODY = 32 << 20
"""Bytes of a request: room for images. Our own bound."""

DIALECTS = {"/chat/completions": CHAT, "/responses": RESPONSES, "/embeddings": EMBEDDINGS}

SCRIPT = web.AppKey("script", Script)
JOURNAL = web.AppKey("journal", Journal)
RUNNING = web.AppKey("running", set[asyncio.Task[object]])


def create_app(script: Script) -> web.Application:
    """The provider as an application.

    Run it with `AppRunner(app, handler_cancellation=True)`, so that a client that goes away is noticed at once and not
    at the next write; `running` and `serve` do.
    """
    app = web.Application(middlewares=[_errors, _key], client_max_size=MAX_BODY)
    app[SCRIPT] = script
    app[JOURNAL] = Journal()
    app[RUNNING] = set()
    app.on_shutdown.append(_stop)
    for prefix in ("", "/v1"):
        for path, dialect in DIALECTS.items():
            app.router.add_post(prefix + path, partial(_answer, dialect))
        app.router.add_get(f"{prefix}/models", _models)
    app.router.add_get("/healthz", _health)
    app.router.add_get("/requests", _requests)
    app.router.add_delete("/requests", _clear)
    return app


async def _answer(dialect: Dialect, request: web.Request) -> web.StreamResponse:
    journal = request.app[JOURNAL]
    record = RequestRecord(f"{dialect.prefix}{uuid.uuid4().hex}")
    journal.add(record)
    tasks, task = request.app[RUNNING], asyncio.current_task()
    if task is not None:
        tasks.add(task)
    outcome = STOPPED
    try:
        response = await complete(request, dialect, request.app[SCRIPT], record, journal)
        outcome = FINISHED
        return response
    except ApiError as error:
        record.status, record.error = error.status, error.message
        if error.fault:
            record.fail(error.fault)
        outcome = REJECTED
        error.headers["x-request-id"] = record.id
        return error.response()
    except ConnectionError:
        record.client_closed, outcome = True, CLIENT_CLOSED
        return web.Response()  # to nobody: aiohttp would log the error as one of ours
    except asyncio.CancelledError:
        # Either: aiohttp cancels a handler whose client has gone, and `_stop` those that are left.
        record.client_closed = request.transport is None
        if record.client_closed:
            outcome = CLIENT_CLOSED
        raise
    finally:
        if task is not None:
            tasks.discard(task)
        journal.end(record, outcome)


async def _models(_: web.Request) -> web.Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "deltafan"}
    return web.json_response({"object": "list", "data": [model]})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _requests(request: web.Request) -> web.Response:
    return web.json_response([record.to_dict() for record in request.app[JOURNAL].records])


async def _clear(request: web.Request) -> web.Response:
    return web.json_response({"cleared": request.app[JOURNAL].clear()})


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error has OpenAI's shape, those of aiohttp too."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except web.HTTPException as error:
        message = f"{error.reason}: {request.method} {request.path}"
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        return ApiError(error.status, message, headers=headers).response()


@web.middleware
async def _key(request: web.Request, handler: Handler) -> web.StreamResponse:
    required = request.app[SCRIPT].require_key
    if required is not None and request.path != "/healthz":
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if not hmac.compare_digest(given, f"Bearer {required}".encode(errors="replace")):
            raise wrong_key()
    return await handler(request)


async def _stop(app: web.Application) -> None:
    """Ends the answers that still run: aiohttp would wait for them, and a stalled one never ends."""
    tasks = app[RUNNING].copy()
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
