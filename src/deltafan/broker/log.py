"""A job's log: reading it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from deltafan.broker import scripts
from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import partition
from deltafan.coalesce import coalesce
from deltafan.events import Event, EventId
from deltafan.wire import decode, encode, peek

PAGE = 1000
"""Entries read at once, at most."""
PAGE_BYTES = 256 * 1024
"""Bytes of entries read at once, unless a single one has more."""


@dataclass(slots=True)
class Entry:
    """One event as it travels: its id, its type and its bytes. `frame` is for who encodes it further, once for all."""

    id: EventId
    type: str
    data: bytes
    frame: bytes | None = None

    @classmethod
    def of(cls, data: bytes) -> Entry:
        """:raises ValueError: when the bytes are not an event."""
        head = peek(data)
        if not head.type.isidentifier():
            raise ValueError(f"not an event type: {head.type!r}")
        return cls(head.id, head.type, data)

    def event(self) -> Event | None:
        return decode(self.data)


def follows(last: EventId, event_id: EventId) -> bool:
    """Whether nothing is missing between the two: the next seq, or the first of a later attempt."""
    if event_id.attempt == last.attempt:
        return event_id.seq == last.seq + 1
    return event_id.attempt > last.attempt and event_id.seq == 0


@dataclass(frozen=True, slots=True)
class Page:
    entries: list[Entry]
    ended: bool
    """The log had nothing more when it was read."""


async def read_page(redis: Redis, job_id: str, after: EventId | None, count: int = PAGE) -> Page:
    """The next entries after an id, from the beginning for `None`: at most `count`, and no more than `PAGE_BYTES` of
    them, but one at least. They may wait in memory until a slow reader has taken them.

    :raises BrokerUnavailable: Redis cannot be reached.
    """
    start = "-" if after is None else f"({after}"
    with redis_errors():
        found: Any = await scripts.PAGE.run(redis, [partition(job_id).log(job_id)], [start, count, PAGE_BYTES])
    entries: list[Entry] = []
    for entry_id, data in zip(found[1::2], found[2::2], strict=True):
        attempt, _, seq = entry_id.partition(b"-")
        entries.append(Entry(EventId(int(attempt), int(seq)), peek(data).type, data))
    return Page(entries, ended=found[0] == 0)


async def last_id(redis: Redis, job_id: str) -> EventId | None:
    """The id at the log's present end; `None` for no log."""
    with redis_errors():
        found: Any = await redis.xrevrange(partition(job_id).log(job_id), count=1)
    if not found:
        return None
    attempt, _, seq = found[0][0].partition(b"-")
    return EventId(int(attempt), int(seq))


async def read_all(redis: Redis, job_id: str, after: EventId | None = None) -> AsyncGenerator[list[Entry], None]:
    """Pages until the log's present end."""
    while True:
        page = await read_page(redis, job_id, after)
        if page.entries:
            yield page.entries
            after = page.entries[-1].id
        if page.ended:
            return


def compact(job_id: str, entries: Sequence[Entry]) -> list[Entry]:
    """Merge adjacent deltas of a replay. Each merged entry carries the last id of its run, and its first as `first`."""
    compacted: list[Entry] = []
    known: list[Event] = []

    def flush() -> None:
        for event in coalesce(known):
            if event.id is not None:
                data = encode(job_id, event.id, event, event.first)
                compacted.append(Entry(event.id, event.type, data))
        known.clear()

    for entry in entries:
        event = entry.event()
        if event is None:  # of a type that a later version writes: passed on as it is
            flush()
            compacted.append(entry)
        else:
            known.append(event)
    flush()
    return compacted
