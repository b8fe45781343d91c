"""What workers do for one another and for waiting jobs: heartbeats, reaping, promoting.

Every function is safe to run in any number of workers at once: each script lets one of them win.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from deltafan.broker.cluster import ClusterRedis, beside
from deltafan.broker.connections import redis_errors
from deltafan.broker.intake import Taken, taken
from deltafan.broker.keys import GROUP, TAKEOVER, Partition, partition
from deltafan.broker.scripts import FORGET, GATHER, PROMOTE, REAP, Call, run_all
from deltafan.job import PRIORITIES, JobState
from deltafan.settings import Retention, WorkerSettings

BATCH = 200
"""Entries looked at by one call."""
_ENDED: Final[dict[bytes, JobState]] = {b"failed": "failed", b"cancelled": "cancelled"}
"""What the reaping script answers of a job that it has ended."""
StopWanted = Literal["cancelled", "fenced", "gone"]
"""Why an attempt may not go on: somebody cancelled the job; it is another worker's, or has ended; it has no record."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """What became of the jobs of lost workers."""

    moved: int = 0
    ended: tuple[tuple[str, JobState], ...] = ()
    """Jobs that ended for good, and how: failed as `worker_lost`, or cancelled."""
    lost: tuple[str, ...] = ()
    """The workers whose jobs these were."""


async def beat(redis: Redis, partitions: int, worker: str, lease: float, details: dict[str, Any]) -> frozenset[int]:
    """Say that this worker lives, in every partition, for another lease.

    :return: the partitions of a cluster that could not be told in good time.
    :raises BrokerUnavailable: none could be told.
    """
    value, ms = orjson.dumps(details), int(lease * 1000)
    if isinstance(redis, ClusterRedis):
        return await _beat_apart(redis, partitions, worker, value, ms)
    pipe = redis.pipeline(transaction=False)
    for number in range(partitions):
        pipe.set(Partition(number).worker(worker), value, px=ms)
    with redis_errors():
        await pipe.execute()
    return frozenset()


async def _beat_apart(redis: ClusterRedis, partitions: int, worker: str, value: bytes, ms: int) -> frozenset[int]:
    """A node that is away must cost the worker its lease on no other."""
    tasks = {
        number: asyncio.ensure_future(redis.set(Partition(number).worker(worker), value, px=ms))
        for number in range(partitions)
    }
    try:
        await asyncio.wait(tasks.values(), timeout=ms / 1000 / 4)
    finally:
        for task in tasks.values():
            task.cancel()
        answers = await asyncio.gather(*tasks.values(), return_exceptions=True)
    errors = {n: answer for n, answer in zip(tasks, answers, strict=True) if isinstance(answer, BaseException)}
    if len(errors) == partitions:
        with redis_errors():
            for error in errors.values():
                raise TimeoutError("no answer") if isinstance(error, asyncio.CancelledError) else error
    return frozenset(errors)


async def is_heard(redis: Redis, number: int, worker: str) -> bool:
    """Whether this worker's heartbeat is there."""
    with redis_errors():
        return bool(await redis.exists(Partition(number).worker(worker)))


async def leave(redis: Redis, number: int, worker: str) -> None:
    """Say that this worker has gone: what it still holds in the partition may be taken at once."""
    with redis_errors():
        await redis.delete(Partition(number).worker(worker))


async def stops_wanted(redis: Redis, worker: str, jobs: Sequence[tuple[str, int]]) -> list[StopWanted | None]:
    """Which of these attempts of ours are to stop, for when we were told nothing: the message was lost, or the model is
    silent and no append finds out.

    :param jobs: id and attempt.
    :return: in their order; `None` for those that may go on, and those whose node does not answer.
    """
    pipe = redis.pipeline(transaction=False)
    for job_id, _ in jobs:
        pipe.hmget(partition(job_id).job(job_id), ["state", "owner", "attempt", "cancel"])
    with redis_errors():
        records: Any = await pipe.execute(raise_on_error=False)
    return [_stop_wanted(record, worker, attempt) for (_, attempt), record in zip(jobs, records, strict=True)]


def _stop_wanted(record: Any, worker: str, attempt: int) -> StopWanted | None:
    if isinstance(record, BaseException):
        return None
    state, owner, running, cancel = record
    if state is None:
        return "gone"
    if (state, owner, running) != (b"running", worker.encode(), str(attempt).encode()):
        return "fenced"
    return "cancelled" if cancel == b"1" else None


async def gather(redis: Redis, number: int, queue: str, worker: str) -> int:
    """Take entries that Redis gave out and that nobody holds: an operator's doing. They are found among our own then.

    :return: how many there were.
    """
    streams = Partition(number).queues(queue)
    with redis_errors():
        answers = await run_all(redis, [Call(GATHER, (stream,), (GROUP, worker, BATCH)) for stream in streams])
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
    return sum(answers)


async def reap(
    redis: Redis,
    number: int,
    queue: str,
    settings: WorkerSettings,
    retention: Retention,
    *,
    only: str | None = None,
) -> Reaped:
    """Take the entries of workers whose heartbeat has stopped, and put them before all waiting ones.

    :param only: of this worker, and no other.
    """
    keys = Partition(number)
    moved = 0
    ended: list[tuple[str, JobState]] = []
    lost: dict[str, None] = {}
    for priority in (TAKEOVER, *PRIORITIES):
        stream = keys.queue(queue, priority)
        silent = await _silent(redis, keys, stream, only)
        for worker, holds in silent.items():
            more = holds > 0
            while more:  # all of them in one look: each has a follower who waits
                held = await _held_by(redis, number, queue, priority, worker)
                calls = [_reap_call(keys, item, worker, settings, retention) for item in held]
                with redis_errors():
                    answers = await run_all(redis, calls) if calls else []
                now_ended = [
                    (item.job_id, _ENDED[answer])
                    for item, answer in zip(held, answers, strict=True)
                    if isinstance(answer, bytes) and answer in _ENDED
                ]
                gone = answers.count(b"moved") + len(now_ended)
                moved += answers.count(b"moved")
                ended += now_ended
                if gone:
                    lost[worker] = None
                more = len(held) == BATCH and gone > 0
        names = list(silent)
        for first in range(0, len(names), BATCH):  # of those that still hold something the script leaves the name
            forget = [Call(FORGET, (keys.worker(name), stream), (GROUP, name)) for name in names[first : first + BATCH]]
            with redis_errors():
                await run_all(redis, forget)
    return Reaped(moved, tuple(ended), tuple(lost))


async def _silent(redis: Redis, keys: Partition, stream: str, only: str | None) -> dict[str, int]:
    """Consumers of a stream that have no heartbeat, and how many entries each holds."""
    try:
        with redis_errors():
            consumers: Any = await redis.xinfo_consumers(stream, GROUP)
    except ResponseError:
        return {}  # no such stream or group yet
    holds = {consumer["name"].decode("utf-8", "replace"): int(consumer["pending"]) for consumer in consumers}
    names = [name for name in holds if only in (None, name)]
    if not names:
        return {}
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.exists(keys.worker(name))
    with redis_errors():
        alive: Any = await pipe.execute()
    return {name: holds[name] for name, lives in zip(names, alive, strict=True) if not lives}


async def _held_by(redis: Redis, number: int, queue: str, priority: str, worker: str) -> list[Taken]:
    stream = Partition(number).queue(queue, priority)
    with redis_errors():
        rows: Any = await redis.xpending_range(stream, GROUP, "-", "+", BATCH, consumername=worker)
    entries = [row["message_id"].decode() for row in rows]
    pipe = redis.pipeline(transaction=False)
    for entry in entries:
        pipe.xrange(stream, min=entry, max=entry)
    with redis_errors():
        found: Any = await pipe.execute()
    held: list[Taken] = []
    for entry, match in zip(entries, found, strict=True):
        held.append(taken(number, queue, priority, entry, match[0][1] if match else {}))
    return held


def _reap_call(keys: Partition, item: Taken, worker: str, settings: WorkerSettings, retention: Retention) -> Call:
    return Call(
        REAP,
        (
            keys.worker(worker),
            item.stream,
            keys.queue(item.queue, TAKEOVER),
            *keys.of_job(item.job_id),
            keys.expiries,
            keys.dead(item.queue),
        ),
        (
            item.job_id,
            item.entry,
            worker,
            GROUP,
            item.model,
            item.raw or b"",
            settings.max_attempts,
            retention.retention,
        ),
    )


async def promote(redis: Redis, number: int, queue: str) -> float | None:
    """Queue the delayed jobs whose time has come.

    :return: seconds until the next one is due, by Redis's clock; `None` where none waits.
    """
    keys = Partition(number)
    with redis_errors():
        now = await now_ms(redis, keys)
        due: Any = await redis.zrangebyscore(keys.delayed(queue), "-inf", now, start=0, num=BATCH)
        ids = job_ids(due)
        pipe = redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), ["priority", "model"])
        rows: Any = await pipe.execute() if ids else []
        calls = [
            Call(
                PROMOTE,
                (keys.job(job_id), keys.delayed(queue), keys.queue(queue, (row[0] or b"normal").decode())),
                (member, row[1] or b""),
            )
            for member, job_id, row in zip(due, ids, rows, strict=True)
        ]
        if calls:
            await run_all(redis, calls)
        following: Any = await redis.zrange(keys.delayed(queue), 0, 0, withscores=True)
    return max(0.0, (float(following[0][1]) - now) / 1000) if following else None


def job_ids(members: list[bytes]) -> list[str]:
    """What a sorted set names. What no enqueue of ours put there names no job, and is taken out like a stale one."""
    return [member.decode("utf-8", "replace") for member in members]


async def now_ms(redis: Redis, keys: Partition) -> int:
    """By the clock of the partition's server: its scripts go by it."""
    seconds, micros = await (await beside(redis, keys.deadlines)).time()
    return int(seconds) * 1000 + int(micros) // 1000
