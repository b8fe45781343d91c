"""Dead letters: jobs that failed for good, with every attempt's error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from deltafan.broker import enqueue as build
from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import Partition
from deltafan.broker.status import read_status
from deltafan.errors import DeltafanError, FieldError, JobNotFound, NotDead, ValidationError
from deltafan.job import parse_spec
from deltafan.settings import JobLimits

_SCAN = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`died` is a Unix time in milliseconds; `job` is the spec, or the text of an entry that was no spec."""

    entry: str
    partition: int
    queue: str
    job_id: str
    tenant: str
    reason: str
    died: int
    errors: list[dict[str, Any]]
    job: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.job_id,
            "queue": self.queue,
            "tenant": self.tenant,
            "reason": self.reason,
            "died": self.died,
            "errors": self.errors,
            "job": self.job,
        }


async def list_dead(redis: Redis, partitions: int, queue: str, limit: int = 100) -> list[DeadLetter]:
    """The newest dead letters of a queue."""
    letters: list[DeadLetter] = []
    for number in range(partitions):
        with redis_errors():
            rows: Any = await redis.xrevrange(Partition(number).dead(queue), count=limit)
        letters += [read_letter(number, queue, entry, fields) for entry, fields in rows]
    letters.sort(key=lambda letter: letter.died, reverse=True)
    return letters[:limit]


def read_letter(number: int, queue: str, entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    """An entry of a queue's stream of dead letters."""
    return DeadLetter(
        entry=entry.decode(),
        partition=number,
        queue=queue,
        job_id=fields.get(b"id", b"").decode("utf-8", "replace"),
        tenant=fields.get(b"tenant", b"default").decode(),
        reason=fields.get(b"reason", b"").decode(),
        died=int(fields.get(b"died", b"0")),
        errors=orjson.loads(fields.get(b"errors", b"[]")),
        job=fields.get(b"job", b"").decode("utf-8", "replace"),
    )


async def find_dead(redis: Redis, partitions: int, queue: str, job_id: str) -> DeadLetter:
    """:raises JobNotFound: no such job.
    :raises NotDead: the queue has no dead letter of that job; says what became of it.
    """
    for number in range(partitions):
        last = "+"
        while True:
            with redis_errors():
                rows: Any = await redis.xrevrange(Partition(number).dead(queue), max=last, count=_SCAN)
            for entry, fields in rows:
                if fields.get(b"id", b"").decode("utf-8", "replace") == job_id:
                    return read_letter(number, queue, entry, fields)
            if len(rows) < _SCAN:
                break
            last = f"({rows[-1][0].decode()}"
    raise await not_dead(redis, job_id, queue)


async def not_dead(redis: Redis, job_id: str, queue: str, tenant: str | None = None) -> DeltafanError:
    """Why a queue has no dead letter of a job."""
    try:
        status = await read_status(redis, job_id, tenant)
    except JobNotFound as error:
        return error
    return NotDead(job_id, status.state, queue, status.queue)


async def retry_dead(redis: Redis, letter: DeadLetter, limits: JobLimits) -> build.Enqueued:
    """Run a dead job again, as a new job: the old one's log has ended. The letter goes when the new job is queued.

    Who asks twice, at once or after a lost answer, gets the same new job.

    :raises ValidationError: the letter holds no valid spec (an entry that was XADDed by hand and rejected).
    """
    try:
        value = orjson.loads(letter.job)
    except orjson.JSONDecodeError:
        raise ValidationError([FieldError("job", "the dead letter holds no job that could run")]) from None
    if isinstance(value, dict):
        # Its wait is over, and its idempotency key names the job that failed.
        for name in ("delay", "run_at", "id"):
            value.pop(name, None)
        value["idempotency_key"] = f"retry:{letter.job_id}:{letter.entry}"
    spec = parse_spec(value, limits)
    while True:
        call = build.build(
            spec,
            build.new_job_id(letter.partition),
            tenant=letter.tenant,
            max_queue=limits.max_queue,
            retry_of=letter.job_id,
        )
        with redis_errors():
            enqueued = build.outcome(spec, await call.script.run(redis, call.keys, call.args))
        if enqueued is not None:
            await drop_dead(redis, letter)
            return enqueued


async def drop_dead(redis: Redis, letter: DeadLetter) -> None:
    """Forget a dead letter. The job's record stays until it expires."""
    with redis_errors():
        await redis.xdel(Partition(letter.partition).dead(letter.queue), letter.entry)
