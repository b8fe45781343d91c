"""The HTTP API under `/apps/<app_id>/`.

https://pusher.com/docs/channels/library_auth_reference/rest-api/
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.authorization import authorize
from deltafan.devserver.pusher.hub import Hub
from deltafan.devserver.pusher.journal import RequestRecord
from deltafan.devserver.pusher.protocol import UNAUTHORIZED
from deltafan.devserver.pusher.rules import PRESENCE, channel_problem
from deltafan.devserver.pusher.triggers import parse_batch, parse_event, parse_info
from deltafan.devserver.pusher.websocket import HUB

Answer = dict[str, Any]
Operation = Callable[[Hub, web.Request, bytes, RequestRecord], Answer]


def add_routes(app: web.Application) -> None:
    for method, path, operation in (
        ("POST", "/events", _trigger),
        ("POST", "/batch_events", _trigger_batch),
        ("GET", "/channels", _channels),
        ("GET", "/channels/{channel}", _channel),
        ("GET", "/channels/{channel}/users", _users),
        ("POST", "/users/{user}/terminate_connections", _terminate),
    ):
        app.router.add_route(method, "/apps/{app_id}" + path, _handler(operation))


def _handler(operation: Operation) -> Callable[[web.Request], Any]:
    """Around every operation: the record, the faults and the authorization."""

    async def handle(request: web.Request) -> web.Response:
        hub = request.app[HUB]
        faults = hub.faults.take()
        record = hub.journal.begin(request.method, request.path, map(str, faults.values()))
        hub.changed()
        try:
            if "delay" in faults:
                await asyncio.sleep(faults["delay"].number or 0)
            if "drop" in faults:
                return _cut(request)
            if "status" in faults:
                raise ApiError(int(faults["status"].number or 500), "This answer was ordered: it is a fault")
            body = await request.read()
            now = time.time() + (faults["skew"].number or 0 if "skew" in faults else 0)
            authorize(
                hub.app,
                request.method,
                request.path,
                request.query.items(),
                body,
                app_id=request.match_info["app_id"],
                now=now,
            )
            answer = operation(hub, request, body, record)
            if "lost_reply" in faults:
                return _cut(request)
            record.status = 200
            return web.json_response(answer)
        except ApiError as error:
            record.status = error.status
            return error.response()
        finally:
            hub.changed()

    return handle


def _cut(request: web.Request) -> web.Response:
    """Closes the connection; what is returned can no longer be sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _trigger(hub: Hub, _: web.Request, body: bytes, record: RequestRecord) -> Answer:
    trigger = parse_event(body)
    hub.publish(record, trigger)
    if trigger.info is None:
        return {}
    return {"channels": {name: hub.channels.attributes(name, trigger.info) for name in trigger.channels}}


def _trigger_batch(hub: Hub, _: web.Request, body: bytes, record: RequestRecord) -> Answer:
    triggers = parse_batch(body)
    for trigger in triggers:
        hub.publish(record, trigger)
    if all(trigger.info is None for trigger in triggers):
        return {}
    return {"batch": [hub.channels.attributes(trigger.channels[0], trigger.info or ()) for trigger in triggers]}


def _channels(hub: Hub, request: web.Request, _: bytes, __: RequestRecord) -> Answer:
    prefix, info = request.query.get("filter_by_prefix", ""), parse_info(request.query.get("info", ""))
    if "user_count" in info and not prefix.startswith(PRESENCE):
        raise ApiError(400, f"user_count is told of presence channels only: filter_by_prefix={PRESENCE} is needed")
    names = (name for name in hub.channels.names() if name.startswith(prefix))
    return {"channels": {name: hub.channels.attributes(name, info) for name in names}}


def _channel(hub: Hub, request: web.Request, _: bytes, __: RequestRecord) -> Answer:
    name, info = _name(request), parse_info(request.query.get("info", ""))
    if "user_count" in info and not name.startswith(PRESENCE):
        raise ApiError(400, "user_count is told of presence channels only")
    return {"occupied": hub.channels.subscription_count(name) > 0, **hub.channels.attributes(name, info)}


def _users(hub: Hub, request: web.Request, _: bytes, __: RequestRecord) -> Answer:
    name = _name(request)
    if not name.startswith(PRESENCE):
        raise ApiError(400, "Users can only be retrieved for presence channels")
    return {"users": [{"id": member.user_id} for member in hub.channels.members(name)]}


def _terminate(hub: Hub, request: web.Request, _: bytes, __: RequestRecord) -> Answer:
    for connection in list(hub.connections.values()):
        if connection.user_id == request.match_info["user"]:
            hub.disconnect(connection, UNAUTHORIZED, "The connections of this user were terminated")
    return {}


def _name(request: web.Request) -> str:
    name = request.match_info["channel"]
    if problem := channel_problem(name):
        raise ApiError(400, f"channel: {name[:200]!r} {problem}")
    return name
