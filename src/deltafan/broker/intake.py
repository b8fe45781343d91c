"""Taking entries from the queues: consumer groups, reading, and waiting for work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.exceptions import ResponseError

from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import GROUP, TAKEOVER, Partition, raw_job_id
from deltafan.broker.scripts import TAKE
from deltafan.errors import ConfigurationError
from deltafan.job import JOB_ID, PRIORITIES


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry that this worker has read, and that nobody else gets while its heartbeat lasts."""

    partition: int
    queue: str
    priority: str
    entry: str
    job_id: str
    fields: dict[bytes, bytes] = field(repr=False)

    @property
    def stream(self) -> str:
        return Partition(self.partition).queue(self.queue, self.priority)

    @property
    def raw(self) -> bytes | None:
        """The spec of a job that was XADDed by hand; `None` for one that our own enqueue made."""
        return self.fields.get(b"job")

    @property
    def model(self) -> str:
        return self.fields.get(b"model", b"").decode("utf-8", "replace")


def taken(number: int, queue: str, priority: str, entry: str, fields: dict[bytes, bytes]) -> Taken:
    """An entry with its job's id: the one it names, else the one that follows from its place."""
    named = fields.get(b"id", b"").decode("utf-8", "replace") or _own_id(fields.get(b"job", b""))
    if not (JOB_ID.fullmatch(named) and named.startswith(f"{number}-")):
        named = raw_job_id(number, queue, priority, entry)
    return Taken(number, queue, priority, entry, named, fields)


def _own_id(raw: bytes) -> str:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    named = value.get("id") if isinstance(value, dict) else None
    return named if isinstance(named, str) else ""


class Intake:
    """One worker's view of the queues it serves."""

    def __init__(self, connections: Connections, worker: str, queues: Sequence[str], partitions: int) -> None:
        self._connections = connections
        self._worker = worker
        self._turn = 0
        # By partition (one slot each), and in it the streams of all queues in the order of serving.
        self._places = {
            number: [(queue, priority) for priority in (TAKEOVER, *PRIORITIES) for queue in queues]
            for number in range(partitions)
        }

    def _streams(self, number: int) -> list[str]:
        return [Partition(number).queue(queue, priority) for queue, priority in self._places[number]]

    async def ensure_groups(self) -> None:
        """Make the streams and their groups; those that exist stay as they are.

        :raises ConfigurationError: a stream's key holds something else.
        """
        for number in self._places:
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
        """Read up to `count` waiting entries without waiting, the first priorities first."""
        found: list[Taken] = []
        numbers = list(self._places)
        self._turn = (self._turn + 1) % len(numbers)  # each partition is first in its turn: none is starved
        for number in numbers[self._turn :] + numbers[: self._turn]:
            if count == len(found):
                break
            with redis_errors():
                answer: Any = await self._healing(
                    TAKE.run(
                        self._connections.commands, self._streams(number), [GROUP, self._worker, count - len(found)]
                    )
                )
            for place, entry, pairs in answer or ():
                found.append(self._taken(number, place - 1, entry, dict(zip(pairs[::2], pairs[1::2], strict=True))))
        return found

    async def wait(self, seconds: float) -> list[Taken]:
        """Wait for work, at most `connections.BLOCK` seconds: at most one entry of each stream, possibly none."""
        by_stream = {
            stream.encode(): (number, place)
            for number in self._places
            for place, stream in enumerate(self._streams(number))
        }
        with redis_errors():
            answer: Any = await self._healing(
                self._connections.blocking.xreadgroup(
                    GROUP, self._worker, dict.fromkeys(by_stream, ">"), count=1, block=max(1, int(seconds * 1000))
                )
            )
        return [self._taken(*by_stream[stream], entry, fields) for stream, entry, fields in _rows(answer)]

    async def pending(self, count: int = 1000) -> list[Taken]:
        """What this worker holds unacknowledged: its running jobs, and entries whose reply was lost on the way."""
        held: list[Taken] = []
        for number in self._places:
            for place, stream in enumerate(self._streams(number)):
                with redis_errors():
                    answer: Any = await self._healing(
                        self._connections.commands.xreadgroup(GROUP, self._worker, {stream: "0"}, count=count)
                    )
                held += [self._taken(number, place, entry, fields) for _, entry, fields in _rows(answer) if fields]
        return held

    def _taken(self, number: int, place: int, entry: bytes, fields: dict[bytes, bytes]) -> Taken:
        queue, priority = self._places[number][place]
        return taken(number, queue, priority, entry.decode(), fields)

    async def _healing(self, reading: Any) -> Any:
        """A group that somebody destroyed is made anew; what waits is read by the next call."""
        try:
            return await reading
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.ensure_groups()
            return None


def _rows(answer: Any) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
    """XREADGROUP's answer as (stream, entry, fields). The fields of an entry that was deleted are empty."""
    return [(stream, entry, fields or {}) for stream, entries in answer or () for entry, fields in entries]
