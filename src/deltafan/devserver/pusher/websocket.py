"""`/app/<key>`: the handshake, the reading loop, and noticing a client that has gone."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from typing import Final

from aiohttp import WSMsgType, web

from deltafan.devserver.pusher import messages
from deltafan.devserver.pusher.connection import CLOSING_SECONDS, Connection
from deltafan.devserver.pusher.hub import Hub
from deltafan.devserver.pusher.protocol import Session
from deltafan.devserver.pusher.rules import MAX_FRAME

PROTOCOLS: Final = ("5", "6", "7")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}([-+][0-9A-Za-z.+-]{1,32})?")

HUB = web.AppKey("hub", Hub)


async def serve_client(request: web.Request) -> web.WebSocketResponse:
    """Serves one client until either side ends the connection."""
    hub = request.app[HUB]
    problem = _problem(hub, request.match_info["key"], request.query)
    if problem is not None:
        return await refuse(request, *problem)
    ws = _response()
    await ws.prepare(request)
    connection = Connection(_socket_id(hub), ws, request.transport, hub.app.outbox_bytes)
    writer = asyncio.create_task(connection.write())
    hub.opened(connection)
    try:
        connection.send(messages.established(connection.socket_id, hub.app.activity_timeout))
        await _read(ws, connection, hub)
        if connection.closing:
            await writer
    finally:
        hub.closed(connection)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    return ws


async def refuse(request: web.Request, code: int, message: str) -> web.WebSocketResponse:
    """Accepts the WebSocket only to close it, because a browser learns nothing of a refused handshake."""
    ws = _response()
    await ws.prepare(request)
    if request.query.get("protocol") not in ("6", "7"):  # older clients look for the code in an event
        await ws.send_frame(messages.error(message, code), WSMsgType.TEXT)
    await ws.close(code=code, message=messages.reason(message))
    return ws


def _response() -> web.WebSocketResponse:
    return web.WebSocketResponse(timeout=CLOSING_SECONDS, max_msg_size=MAX_FRAME, compress=False)


def _problem(hub: Hub, key: str, query: Mapping[str, str]) -> tuple[int, str] | None:
    """Why a client is not served: the close code and the words for it."""
    if key != hub.app.key:
        return 4001, f"Application does not exist: unknown app key {key[:32]!a}"
    if "protocol" not in query:
        return 4008, "No protocol version supplied"
    if query["protocol"] not in PROTOCOLS:
        return 4007, f"Unsupported protocol version; one of {', '.join(PROTOCOLS)}"
    if "version" in query and not _VERSION.fullmatch(query["version"]):
        return 4006, "Invalid version string format"
    if len(hub.connections) >= hub.app.max_connections:
        return 4004, f"Application is over connection quota: at most {hub.app.max_connections}"
    return None


def _socket_id(hub: Hub) -> str:
    while True:
        socket_id = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**9)}"
        if socket_id not in hub.connections:
            return socket_id


async def _read(ws: web.WebSocketResponse, connection: Connection, hub: Hub) -> None:
    session, pinged = Session(hub, connection), False
    while True:
        try:
            message = await ws.receive(hub.app.pong_timeout if pinged else hub.app.activity_timeout)
        except TimeoutError:
            if pinged:
                connection.close(4201, "Pong reply not received")
                return
            connection.send(messages.PING)
            pinged = True
            continue
        pinged = False
        if message.type is WSMsgType.TEXT:
            if not connection.closing:
                session.receive(message.data)
        elif message.type is WSMsgType.BINARY:
            connection.send(messages.error("Binary frames are not supported"))
        else:
            return
