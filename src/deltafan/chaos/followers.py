"""Followers as users write them: over SSE, on Redis's channel, with the Python client. Each keeps all that it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deltafan.broker.queue import AsyncQueue
from deltafan.errors import BrokerUnavailable, JobNotFound, LogExpired
from deltafan.events import Done, Error, Event, EventId
from deltafan.sse import Decoder
from deltafan.wire import decode

RETRY = 0.05
"""Seconds until a follower that was cut off tries again. Browsers take longer; a test has less patience."""


@dataclass(slots=True)
class Seen:
    """What one follower has seen."""

    follower: str
    events: list[Event] = field(default_factory=list)
    resets: int = 0
    """How often it was told that what it had is void."""
    delivered: int = 0
    """Events that reached it, those before a reset included."""
    connections: int = 0
    failures: list[str] = field(default_factory=list)
    """Answers other than a stream, such as `503`."""
    told: list[str] = field(default_factory=list)
    """Codes of errors that are no events of the job, such as `job_gone`."""
    gone: str = ""
    """Why there is nothing more to follow, when it was told so instead of `done`."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> EventId | None:
        return self.events[-1].id if self.events else None

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Done)

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.delivered += 1
        self.news.set()

    def reset(self) -> None:
        self.events.clear()
        self.resets += 1

    async def until(self, check: Callable[[Seen], bool], timeout: float = 30.0) -> None:
        """Return as soon as what has been seen fulfils a check.

        :raises TimeoutError: it does not in time; says where the follower stands.
        """
        try:
            async with asyncio.timeout(timeout):
                while not check(self):
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.follower}: {len(self.events)} events, the last {self.last}") from None


Follow = Callable[[Seen], Awaitable[None]]


def by_sse(http: aiohttp.ClientSession, relays: Sequence[str], job_id: str, after: EventId | None = None) -> Follow:
    """As a browser does: connects again with `Last-Event-ID`, to the next relay in turn, until `done`."""

    async def follow(seen: Seen) -> None:
        cursor = after
        while not seen.ended:
            relay = relays[seen.connections % len(relays)]
            seen.connections += 1
            headers = {"Last-Event-ID": str(cursor)} if cursor is not None else {}
            try:
                async with http.get(f"{relay}/v1/jobs/{job_id}/events", headers=headers) as answer:
                    if answer.status in (404, 410):
                        seen.gone = (await answer.json())["error"]["code"]
                        return
                    if answer.status != 200:
                        seen.failures.append(str(answer.status))
                    else:
                        cursor = await _frames(answer, seen, cursor)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            if not seen.ended:
                await asyncio.sleep(RETRY)

    return follow


async def _frames(answer: aiohttp.ClientResponse, seen: Seen, cursor: EventId | None) -> EventId | None:
    decoder = Decoder()
    try:
        async for data in answer.content.iter_any():
            for frame in decoder.feed(data):
                if frame.event == "reset":
                    seen.reset()
                    cursor = None
                elif frame.event != "heartbeat" and (event := decode(frame.data)) is not None:
                    if event.id is None and isinstance(event, Error):
                        seen.told.append(event.code)
                        continue
                    seen.add(event)
                    cursor = event.id
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass  # cut off: what came before it counts
    return cursor


def by_client(queue: AsyncQueue, job_id: str, after: EventId | None = None) -> Follow:
    """`async for event in job.events()`: the client waits outages out by itself, once it has begun."""

    async def follow(seen: Seen) -> None:
        cursor = after
        while not seen.ended:
            seen.connections += 1
            try:
                async for event in queue.job(job_id).events(cursor):
                    if cursor is not None and event.id is not None and event.id <= cursor:
                        seen.reset()  # an id that the log does not reach is void: all comes
                    cursor = event.id
                    seen.add(event)
                return
            except BrokerUnavailable as error:
                seen.failures.append(str(error))
                await asyncio.sleep(RETRY)
            except (JobNotFound, LogExpired) as error:
                seen.gone = error.code
                return

    return follow


def by_channel(
    server: Callable[[], AbstractAsyncContextManager[Redis]], keys: tuple[str, str, str], *, sharded: bool = False
) -> Follow:
    """As a program in any language does: subscribe, read the log, merge by id; read the log again after a hole or a
    lost connection, and when nothing has come for a second. Without a record there is nothing to wait for.

    :param server: a plain client of the server that has the job now; asked anew after each lost connection.
    :param keys: the job's record, log and live channel.
    :param sharded: the server is a node of a cluster.
    """
    record, log, channel = keys

    async def read(redis: Redis, seen: Seen) -> None:
        start = f"({seen.last}" if seen.last is not None else "-"
        found: Any = await redis.xrange(log, min=start)
        for _, fields in found:
            if (event := decode(fields[b"e"])) is not None:
                seen.add(event)
        if not found and not await redis.exists(record):
            seen.gone = "not_found"

    async def listen(redis: Redis, seen: Seen) -> None:
        async with redis.pubsub() as pubsub:
            await (pubsub.ssubscribe if sharded else pubsub.subscribe)(channel)
            await read(redis, seen)
            while not (seen.ended or seen.gone):
                message = await pubsub.get_message(ignore_subscribe_messages=False, timeout=1.0)
                event = decode(message["data"]) if message and message["type"] in ("message", "smessage") else None
                if event is not None and _is_next(seen.last, event):
                    seen.add(event)
                elif message is None or event is None or seen.last is None or (event.id or seen.last) > seen.last:
                    await read(redis, seen)

    async def follow(seen: Seen) -> None:
        while not (seen.ended or seen.gone):
            seen.connections += 1
            try:
                async with server() as redis:
                    await listen(redis, seen)
            except (RedisError, OSError, TimeoutError, BrokerUnavailable):
                await asyncio.sleep(RETRY)

    return follow


def _is_next(last: EventId | None, event: Event) -> bool:
    if last is None or event.id is None:
        return False
    return event.id == EventId(last.attempt, last.seq + 1) or (event.id.attempt > last.attempt and event.id.seq == 0)


def coming_and_going(follow_from: Callable[[EventId | None], Follow], stays: Sequence[float]) -> Follow:
    """Leaves after each stay, in seconds, and comes back with its cursor; the last time it stays to the end.

    :param follow_from: makes the follower that it is meanwhile, from a cursor on.
    """

    async def follow(seen: Seen) -> None:
        for stay in stays:
            with suppress(TimeoutError):
                async with asyncio.timeout(stay):
                    await follow_from(seen.last)(seen)
            if seen.ended or seen.gone:
                return
        await follow_from(seen.last)(seen)

    return follow
