"""Taking entries from the queues: consumer groups, reading, and waiting for work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import GROUP, TAKEOVER, Partition, raw_job_id
from deltafan.broker.presence import Presence
from deltafan.broker.scripts import TAKE
from deltafan.broker.waiting import LOOK_AGAIN, Read, read_first
from deltafan.errors import ConfigurationError
from deltafan.job import JOB_ID, PRIORITIES
from deltafan.job_errors import MODEL_NAME
from deltafan.settings import JobLimits

CUT = 4096
"""Bytes that are kept of a field that is longer than a job may be: enough for its dead letter."""
_MODEL_CHARS = 200
_LOST = ("NOGROUP", "UNBLOCKED the stream key no longer exists")
"""Errors that say that a group is gone; the other is what a read that waited meanwhile gets."""
_KNOWN = (b"id", b"job", b"model", b"last_chance")


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry that this worker has read, and that nobody else gets while its heartbeat lasts."""

    partition: int
    queue: str
    priority: str
    entry: str
    job_id: str
    fields: dict[bytes, bytes] = field(repr=False)
    size: int = 0
    """Bytes of the spec of a job that was XADDed by hand. Of one that is too long `raw` holds the beginning."""

    @property
    def stream(self) -> str:
        return Partition(self.partition).queue(self.queue, self.priority)

    @property
    def raw(self) -> bytes | None:
        """The spec of a job that was XADDed by hand; `None` for one that our own enqueue made."""
        return self.fields.get(b"job")

    @property
    def last_chance(self) -> bool:
        """Its worker was lost, and it may fail only once more: maybe it is what kills workers."""
        return b"last_chance" in self.fields

    @property
    def model(self) -> str:
        """Of a job that was XADDed by hand, which may be none at all: empty where it names no model."""
        if self.raw is None:
            return self.fields.get(b"model", b"").decode("utf-8", "replace")
        named = _own(self.raw, "model")
        return named if len(named) <= _MODEL_CHARS and re.fullmatch(MODEL_NAME, named) else ""


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that Redis counts as a worker's own: where it is, not what it holds."""

    partition: int
    place: int
    """Of its stream among those of the partition."""
    stream: str
    entry: str


def taken(
    number: int, queue: str, priority: str, entry: str, fields: dict[bytes, bytes], size: int | None = None
) -> Taken:
    """An entry with its job's id: the one it names, else the one that follows from its place.

    :param size: bytes of its spec, where the fields hold only the beginning of it.
    """
    named = fields.get(b"id", b"").decode("utf-8", "replace") or _own(fields.get(b"job", b""), "id")
    if not (JOB_ID.fullmatch(named) and named.startswith(f"{number}-")):
        named = raw_job_id(number, queue, priority, entry)
    return Taken(number, queue, priority, entry, named, fields, len(fields.get(b"job", b"")) if size is None else size)


def _own(raw: bytes, name: str) -> str:
    """A text in the job of a raw entry; empty where there is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    named = value.get(name) if isinstance(value, dict) else None
    return named if isinstance(named, str) else ""


class Intake:
    """One worker's view of the queues it serves."""

    def __init__(
        self,
        connections: Connections,
        worker: str,
        queues: Sequence[str],
        partitions: int,
        max_bytes: int = JobLimits().max_bytes,
    ) -> None:
        """:param max_bytes: of a job; an entry that is longer is cut as it is read, for its dead letter."""
        self._connections = connections
        self._max_bytes = max_bytes
        self._worker = worker
        self._turn = 0
        self._presence = Presence(apart=connections.slots is not None)
        # By partition (one slot each), and in it the streams of all queues in the order of serving.
        self._places = {
            number: [(queue, priority) for priority in (TAKEOVER, *PRIORITIES) for queue in queues]
            for number in range(partitions)
        }

    def _streams(self, number: int) -> list[str]:
        return [Partition(number).queue(queue, priority) for queue, priority in self._places[number]]

    async def ensure_groups(self) -> None:
        """Make the streams and their groups; those that exist stay as they are.

        On a cluster a partition whose node is away is left out: its groups are made when it is read from.

        :raises ConfigurationError: a stream's key holds something else.
        :raises BrokerUnavailable: Redis cannot be reached.
        """

        async def ensure(number: int) -> None:
            with self._presence.noted(number):
                await self._ensure_groups_in(number)

        for made in await asyncio.gather(*(ensure(number) for number in self._places), return_exceptions=True):
            if isinstance(made, BaseException):
                raise made
        self._presence.able(self._places)

    async def _ensure_groups_in(self, number: int) -> None:
        for stream in self._streams(number):
            with redis_errors():
                try:
                    await self._connections.commands.xgroup_create(stream, GROUP, id="0", mkstream=True)
                except ResponseError as error:
                    if str(error).startswith("WRONGTYPE"):
                        rule = "another program's, as it seems: rename or delete it"
                        raise ConfigurationError(f"the Redis key {stream} is not a stream but {rule}") from None
                    if not str(error).startswith("BUSYGROUP"):
                        raise

    async def take(self, count: int) -> list[Taken]:
        """Read up to `count` waiting entries without waiting, the first priorities first.

        On a cluster a partition whose node is away is left out for a while; with all of them away, the error is raised.
        """
        found: list[Taken] = []
        numbers = self._presence.able(self._places)
        self._turn = (self._turn + 1) % len(numbers)  # each partition is first in its turn: none is starved
        for number in numbers[self._turn :] + numbers[: self._turn]:
            if count == len(found):
                break
            with self._presence.noted(number), redis_errors():
                answer: Any = await self._healing(
                    TAKE.run(
                        self._connections.commands,
                        self._streams(number),
                        [GROUP, self._worker, count - len(found), self._max_bytes, CUT],
                    ),
                    [number],
                )
                for place, entry, pairs, size in answer or ():
                    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
                    found.append(self._taken(number, place - 1, entry, fields, size))
        return found

    async def wait(self, seconds: float) -> list[Taken]:
        """Wait for work, at most `connections.BLOCK` seconds: at most one entry of each stream, possibly none.

        On a cluster each partition is read by a command of its own, because no command reads two slots.
        """
        blocking = self._connections.blocking
        if not isinstance(blocking, ClusterRedis):
            with redis_errors():
                return await self._read(blocking, list(self._places), seconds)
        numbers = self._presence.able(self._places)
        if len(numbers) < len(self._places):
            seconds = min(seconds, LOOK_AGAIN)
        reads = [
            Read(Partition(number).deadlines, partial(self._read, numbers=[number], seconds=seconds))
            for number in numbers
        ]
        found: list[Taken] = []
        for number, answer in zip(numbers, await read_first(blocking, reads), strict=True):
            with self._presence.noted(number), redis_errors():
                found += answer()
        return found

    async def _read(self, redis: Redis, numbers: Sequence[int], seconds: float) -> list[Taken]:
        by_stream = {
            stream.encode(): (number, place) for number in numbers for place, stream in enumerate(self._streams(number))
        }
        answer: Any = await self._healing(
            redis.xreadgroup(
                GROUP, self._worker, dict.fromkeys(by_stream, ">"), count=1, block=max(1, int(seconds * 1000))
            ),
            numbers,
        )
        return [self._taken(*by_stream[stream], entry, fields) for stream, entry, fields in _rows(answer)]

    def unheard(self, numbers: Collection[int]) -> None:
        """In these partitions the last heartbeat did not arrive: what were taken there would be reaped at once."""
        self._presence.unheard = frozenset(numbers)

    async def pending(self, count: int = 1000) -> list[Held]:
        """What this worker holds unacknowledged: its running jobs, and entries whose reply was lost on the way."""
        held: list[Held] = []
        for number in self._presence.able(self._places):
            for place, stream in enumerate(self._streams(number)):
                with self._presence.noted(number), redis_errors():
                    rows: Any = await self._healing(
                        self._connections.commands.xpending_range(
                            stream, GROUP, "-", "+", count, consumername=self._worker
                        ),
                        [number],
                    )
                held += [Held(number, place, stream, row["message_id"].decode()) for row in rows or ()]
        return held

    async def look(self, held: Held) -> Taken | None:
        """Read an entry of our own; `None` where it was deleted."""
        with redis_errors():
            rows: Any = await self._connections.commands.xrange(held.stream, min=held.entry, max=held.entry)
        return self._taken(held.partition, held.place, *rows[0]) if rows else None

    def _taken(
        self, number: int, place: int, entry: bytes, fields: dict[bytes, bytes], size: int | None = None
    ) -> Taken:
        queue, priority = self._places[number][place]
        if size is None:  # no script has cut it
            size = len(fields.get(b"job", b""))
            fields = {
                name: value if len(value) <= self._max_bytes else value[:CUT]
                for name, value in fields.items()
                if name in _KNOWN
            }
        return taken(number, queue, priority, entry.decode(), fields, size)

    async def _healing(self, reading: Any, numbers: Iterable[int]) -> Any:
        """A group that is gone, maybe with its stream, is made anew; what waits is read by the next call."""
        try:
            return await reading
        except ResponseError as error:
            if not any(lost in str(error) for lost in _LOST):
                raise
            for number in numbers:
                await self._ensure_groups_in(number)
            return None


def _rows(answer: Any) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
    """XREADGROUP's answer as (stream, entry, fields). The fields of an entry that was deleted are empty."""
    return [(stream, entry, fields or {}) for stream, entries in answer or () for entry, fields in entries]
