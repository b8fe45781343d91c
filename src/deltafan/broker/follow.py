"""A job's entries as an iterator: replay, then live, until `done`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.hub import Feed, Hub
from deltafan.broker.keys import partition
from deltafan.broker.log import Entry
from deltafan.broker.status import JobStatus, read_status
from deltafan.errors import BrokerUnavailable, JobNotFound, LogExpired
from deltafan.events import EventId
from deltafan.sse import encode
from deltafan.wire import VERSION, dumps, parse_event_id

CURSOR_AHEAD = "cursor_ahead"
"""Why a cursor is void: the job's log does not reach that far, so it is of another log, or Redis lost the tail."""
JOB_GONE = "job_gone"
"""Why a stream ends without `done`: the job's record has vanished, and with it whoever could end it."""
BUFFER = 4096
"""Live events that wait for a slow consumer. Beyond it the follower leaves, and comes back by its cursor."""
_RETRY_MIN, _RETRY_MAX = 0.1, 2.0


class _Buffer:
    """What a feed gives faster than the consumer takes."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.overrun = False
        self.lost = False

    def live(self, entry: Entry) -> None:
        if len(self.entries) >= BUFFER:
            self.overrun = True
        if not self.overrun:
            self.entries.append(entry)
        self.news.set()

    def gone(self) -> None:
        self.lost = True
        self.news.set()

    async def replay(self, entries: list[Entry]) -> None:
        self.entries.extend(entries)
        self.news.set()
        while len(self.entries) >= BUFFER:
            self.room.clear()
            await self.room.wait()


async def follow(
    hub: Hub, job_id: str, after: EventId | None = None, *, tenant: str | None = None
) -> AsyncGenerator[Entry, None]:
    """Yield what follows `after` (everything, compacted, for `None`), each event once and in order, ending with `done`.

    A cursor that the log does not reach is void, and everything comes: else it would be silent for ever, whoever made
    it up.
    Outages of Redis are waited out; a job that nobody ever ends is followed for ever.

    :raises JobNotFound: no such job of this tenant; of the code `job_gone`: its record vanished while it was followed.
    :raises LogExpired: the job has ended and its events are no longer kept.
    """
    wait = _RETRY_MIN
    started = False
    while True:
        try:
            status = await _status(hub, job_id, tenant, known=started)
            if not started and after is not None and await is_void(hub.commands, status, after):
                after = None
            started = True
            if status.has_ended:
                if after is not None and after == log_end(status):
                    return
                with redis_errors():
                    if not await hub.commands.exists(partition(job_id).log(job_id)):
                        raise LogExpired(job_id)
            async with hub.feed(job_id) as feed:
                async for entry in _once(feed, after):
                    after, wait = entry.id, _RETRY_MIN
                    yield entry
                    if entry.type == "done":
                        return
        except BrokerUnavailable:
            if not started:
                raise
            await asyncio.sleep(wait)
            wait = min(wait * 2, _RETRY_MAX)


async def _status(hub: Hub, job_id: str, tenant: str | None, *, known: bool) -> JobStatus:
    """:param known: it was there before."""
    try:
        return await read_status(hub.commands, job_id, tenant)
    except JobNotFound as error:
        raise JobNotFound(error.job_id, gone=known) from None


def log_end(status: JobStatus) -> EventId | None:
    """The log's last id; `None` when there is none yet, or when the log is being made anew after a loss."""
    return parse_event_id(status.last_id) if status.last_id else None


async def is_void(redis: Redis, status: JobStatus, cursor: EventId) -> bool:
    """Whether the job's log does not reach a reader's cursor: it is past the end, or past that of an older attempt.

    Who is past the end of an older attempt has seen what Redis then lost: an attempt that goes on from the text that
    was left (`continued`) does not go on from the reader's.

    :raises BrokerUnavailable: Redis cannot be reached.
    """
    end = log_end(status)
    if status.attempt == 0 or (end is not None and cursor > end):
        return True
    if cursor.attempt >= status.attempt:
        return False
    with redis_errors():
        found: Any = await redis.xrange(partition(status.id).log(status.id), min=str(cursor), count=1)
    return bool(found) and found[0][0] != str(cursor).encode()


def reset_frame(job_id: str, reason: str) -> bytes:
    """Says in an SSE stream that the reader's cursor is void, and that everything follows from the start."""
    return encode(dumps({"v": VERSION, "job": job_id, "type": "reset", "reason": reason}), event="reset")


def gone_frame(job_id: str) -> bytes:
    """Says in an SSE stream that Redis has lost the job: nothing more comes, here or after connecting again."""
    told = {"code": JOB_GONE, "message": "Redis has lost the job", "retryable": False, "will_retry": False}
    return encode(dumps({"v": VERSION, "job": job_id, "type": "error", **told}), event="error")


async def _once(feed: Feed, after: EventId | None) -> AsyncGenerator[Entry, None]:
    """One stay at the feed: until `done`, or until the consumer fell behind."""
    buffer = _Buffer()
    joining = asyncio.create_task(feed.join(after, buffer.replay, buffer))
    joining.add_done_callback(lambda _: buffer.news.set())
    try:
        while True:
            await buffer.news.wait()
            buffer.news.clear()
            while buffer.entries:
                yield buffer.entries.popleft()
                buffer.room.set()
            if buffer.lost:
                raise JobNotFound(feed.job_id, gone=True)
            if buffer.overrun:
                return
            if joining.done():
                joining.result()
    finally:
        feed.leave(buffer)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
