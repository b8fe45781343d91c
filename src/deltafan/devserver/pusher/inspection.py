"""`/emulator/`: looking at what happened, and ordering faults. For this machine only: nothing is signed here."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.websocket import HUB
from deltafan.errors import ValidationError

Handler = Callable[[web.Request], Awaitable[web.Response]]


def add_routes(app: web.Application) -> None:
    for method, path, handler in (
        ("GET", "/messages", _messages),
        ("DELETE", "/messages", _forget),
        ("GET", "/faults", _faults),
        ("POST", "/faults", _set_faults),
        ("DELETE", "/faults", _set_faults),
    ):
        app.router.add_route(method, "/emulator" + path, _local(handler))


def _local(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        if not is_loopback(request.remote):
            raise ApiError(403, "/emulator/ is for the machine that the emulator runs on")
        if "Origin" in request.headers or not _is_local_name(request.headers.get("Host", "")):
            raise ApiError(403, "/emulator/ is not for web pages, and is called localhost or 127.0.0.1")
        return await handler(request)

    return handle


def _is_local_name(host: str) -> bool:
    """A page that has its own name point to this machine (DNS rebinding) calls us by that name."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name == "localhost" or is_loopback(name)


def is_loopback(address: str | None) -> bool:
    """Whether a peer's address is one of this machine itself."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


async def _messages(request: web.Request) -> web.Response:
    journal, channel = request.app[HUB].journal, request.query.get("channel")
    messages = [message for message in journal.messages if channel is None or message.channel == channel]
    return web.json_response(
        {
            "messages": [message.to_dict() for message in messages],
            "requests": [record.to_dict() for record in journal.requests],
        }
    )


async def _forget(request: web.Request) -> web.Response:
    return web.json_response({"cleared": request.app[HUB].journal.clear()})


async def _faults(request: web.Request) -> web.Response:
    return web.json_response({"faults": request.app[HUB].faults.pending})


async def _set_faults(request: web.Request) -> web.Response:
    """Puts the faults in the place of those that were to come; `DELETE` orders none."""
    wanted: object = [] if request.method == "DELETE" else _list(await request.read())
    if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
        raise ApiError(400, 'the body must be {"faults": ["status=500*3", ...]}')
    try:
        request.app[HUB].faults.set(*wanted)
    except ValidationError as error:
        raise ApiError(400, str(error)) from None
    return await _faults(request)


def _list(body: bytes) -> object:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value.get("faults") if isinstance(value, dict) else None
