"""`GET /v1/jobs/{id}/events`: a job's events, from any id, as a live stream or as a JSON snapshot."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpVersion11

from deltafan.broker.connections import redis_errors
from deltafan.broker.follow import CURSOR_AHEAD, is_void, log_end, reset_frame
from deltafan.broker.hub import Hub
from deltafan.broker.keys import partition
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.status import JobStatus
from deltafan.errors import BrokerUnavailable, LogExpired, ValidationError
from deltafan.events import EventId
from deltafan.relay.answers import Refusal
from deltafan.relay.client import SseClient, watch_connection
from deltafan.relay.context import STREAMS, job_of, queue_of
from deltafan.relay.principal import Principal, principal_of
from deltafan.relay.snapshot import snapshot
from deltafan.relay.streams import Streams
from deltafan.sse import retry
from deltafan.wire import parse_event_id

_RETRY_MIN, _RETRY_MAX = 0.1, 2.0
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}

logger = logging.getLogger("deltafan.relay")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a reader begins: after which event, and why its own cursor was void."""

    after: EventId | None
    reset: str | None


async def events(request: web.Request) -> web.StreamResponse:
    cursor = _cursor(request)
    queue, principal = queue_of(request), principal_of(request)
    _, status = await job_of(request, "read")
    start = await _start(queue, status, cursor)
    whole = _wants_snapshot(request)
    if status.has_ended:
        if not whole and cursor is not None and cursor == log_end(status):
            return web.Response(status=204)
        await _check_log(queue, status.id)
    if whole:
        return await snapshot(request, queue, status, start.after, start.reset, principal.hide)
    with request.app[STREAMS].place(principal.name):
        return await _stream(request, queue, status.id, start, principal)


def _cursor(request: web.Request) -> EventId | None:
    """The last id that the reader has seen. A browser that reconnects sends the header, which is newer than the URL."""
    for field, text in (
        ("Last-Event-ID", request.headers.get("Last-Event-ID")),
        ("after", request.query.get("after")),
    ):
        if text:
            try:
                return parse_event_id(text, field)
            except ValidationError as error:
                raise Refusal(400, error.message, code="invalid_cursor", fields=error.fields) from None
    return None


async def _start(queue: AsyncQueue, status: JobStatus, cursor: EventId | None) -> Start:
    void = cursor is not None and await is_void(queue.connections.commands, status, cursor)
    return Start(None, CURSOR_AHEAD) if void else Start(cursor, None)


def _wants_snapshot(request: web.Request) -> bool:
    accept = request.headers.get("Accept", "").lower()
    return "application/json" in accept and "text/event-stream" not in accept


async def _check_log(queue: AsyncQueue, job_id: str) -> None:
    """:raises LogExpired: the job has ended, and its events are no longer kept."""
    with redis_errors():
        if not await queue.connections.commands.exists(partition(job_id).log(job_id)):
            raise LogExpired(job_id)


async def _stream(
    request: web.Request, queue: AsyncQueue, job_id: str, start: Start, principal: Principal
) -> web.StreamResponse:
    streams, transport = request.app[STREAMS], request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    hub = await queue.hub()
    response = web.StreamResponse(headers=_HEADERS)
    response.force_close()  # a connection carries one stream: nothing of it can leak into another answer
    await response.prepare(request)
    watch_connection(transport, streams.settings.heartbeat)
    client = SseClient(
        transport,
        response,
        job_id,
        after=start.after,
        buffer=streams.settings.client_buffer,
        heartbeat=streams.settings.heartbeat,
        chunks=request.version == HttpVersion11,
        hide=principal.hide,
        expires=principal.grant.expires if principal.grant is not None else None,
    )
    with streams.open(client):
        await response.write(_greeting(streams, job_id, start))
        await _until_ended(hub, job_id, client)
        await client.flush()
    return response


def _greeting(streams: Streams, job_id: str, start: Start) -> bytes:
    """The first bytes, sent before anything is read: when to come back (spread, so that not all come at once)."""
    seconds = streams.settings.reconnect * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
    return retry(int(seconds * 1000)) + (reset_frame(job_id, start.reset) if start.reset else b"")


async def _until_ended(hub: Hub, job_id: str, client: SseClient) -> None:
    """Follow until the client's end: `done`, the relay's draining, or the client's own leaving."""
    following = asyncio.create_task(_follow(hub, job_id, client), name=f"deltafan-follow-{job_id}")
    following.add_done_callback(lambda _: client.ended.set())
    try:
        await client.ended.wait()
    finally:
        following.cancel()
        (outcome,) = await asyncio.gather(following, return_exceptions=True)
    if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
        logger.error("following %s failed", job_id, exc_info=outcome)
        client.cut()  # not a clean end: the stream is not complete


async def _follow(hub: Hub, job_id: str, client: SseClient) -> None:
    """Join the job's feed and stay. Outages of Redis are waited out, from where the client is."""
    wait = _RETRY_MIN
    while True:
        try:
            async with hub.feed(job_id) as feed:
                try:
                    await feed.join(client.after, client.replay, client)
                    await client.ended.wait()
                    return
                finally:
                    feed.leave(client)
        except BrokerUnavailable:
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
            wait = min(wait * 2, _RETRY_MAX)
