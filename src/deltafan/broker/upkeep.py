"""What workers do for one another and for waiting jobs: heartbeats, reaping, promoting, expiring, sweeping.

Every function is safe to run in any number of workers at once: each script lets one of them win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.connections import redis_errors
from deltafan.broker.intake import Taken, taken
from deltafan.broker.keys import GROUP, TAKEOVER, Partition
from deltafan.broker.scripts import EXPIRE, FORGET, PROMOTE, REAP, Call, run_all
from deltafan.job import PRIORITIES
from deltafan.settings import Retention, WorkerSettings

BATCH = 200
"""Entries looked at by one call."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """What became of the jobs of lost workers."""

    moved: int = 0
    ended: int = 0


async def beat(redis: Redis, partitions: int, worker: str, lease: float, details: dict[str, Any]) -> None:
    """Say that this worker lives, in every partition, for another lease."""
    pipe = redis.pipeline(transaction=False)
    value = orjson.dumps(details)
    for number in range(partitions):
        pipe.set(Partition(number).worker(worker), value, px=int(lease * 1000))
    with redis_errors():
        await pipe.execute()


async def leave(redis: Redis, partitions: int, worker: str) -> None:
    """Say that this worker has gone: what it still holds may be taken at once."""
    with redis_errors():
        for number in range(partitions):
            await redis.delete(Partition(number).worker(worker))


async def cancels_wanted(redis: Redis, jobs: Sequence[tuple[int, str]]) -> list[str]:
    """Which of these running jobs were cancelled, for when the message was lost."""
    pipe = redis.pipeline(transaction=False)
    for number, job_id in jobs:
        pipe.hget(Partition(number).job(job_id), "cancel")
    with redis_errors():
        flags: Any = await pipe.execute()
    return [job_id for (_, job_id), flag in zip(jobs, flags, strict=True) if flag == b"1"]


async def reap(redis: Redis, number: int, queue: str, settings: WorkerSettings, retention: Retention) -> Reaped:
    """Take the entries of workers whose heartbeat has stopped, and put them before all waiting ones."""
    keys = Partition(number)
    moved = ended = 0
    for priority in (TAKEOVER, *PRIORITIES):
        stream = keys.queue(queue, priority)
        for worker in await _silent(redis, keys, stream):
            held = await _held_by(redis, number, queue, priority, worker)
            calls = [_reap_call(keys, item, worker, settings, retention) for item in held]
            with redis_errors():
                answers = await run_all(redis, calls) if calls else []
                moved += answers.count(b"moved")
                ended += answers.count(b"ended")
                if len(held) < BATCH:
                    await FORGET.run(redis, [keys.worker(worker), stream], [GROUP, worker])
    return Reaped(moved, ended)


async def _silent(redis: Redis, keys: Partition, stream: str) -> list[str]:
    """Consumers of a stream that have no heartbeat."""
    try:
        with redis_errors():
            consumers: Any = await redis.xinfo_consumers(stream, GROUP)
    except ResponseError:
        return []  # no such stream or group yet
    names = [consumer["name"].decode("utf-8", "replace") for consumer in consumers]
    if not names:
        return []
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.exists(keys.worker(name))
    with redis_errors():
        alive: Any = await pipe.execute()
    return [name for name, lives in zip(names, alive, strict=True) if not lives]


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
        now = await _now_ms(redis)
        due: Any = await redis.zrangebyscore(keys.delayed(queue), "-inf", now, start=0, num=BATCH)
        ids = _job_ids(due)
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


async def expire(redis: Redis, number: int, retention: Retention) -> int:
    """End the jobs that have waited past their `expires_in`, in whatever queue, served or not. Gives how many."""
    keys = Partition(number)
    with redis_errors():
        now = await _now_ms(redis)
        late: Any = await redis.zrangebyscore(keys.deadlines, "-inf", now, start=0, num=BATCH)
        ids = _job_ids(late)
        pipe = redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(keys.job(job_id), ["queue", "stream"])
        places: Any = await pipe.execute() if ids else []
        calls = [
            Call(
                EXPIRE,
                (
                    *keys.of_job(job_id),
                    (stream or b"").decode("utf-8", "replace"),
                    keys.delayed((queue or b"").decode("utf-8", "replace")),
                    keys.deadlines,
                    keys.expiries,
                ),
                (member, GROUP, retention.retention),
            )
            for member, job_id, (queue, stream) in zip(late, ids, places, strict=True)
        ]
        answers = await run_all(redis, calls) if calls else []
    return answers.count(b"expired")


async def sweep(redis: Redis, number: int) -> int:
    """Take jobs whose record has expired out of their tenants' indexes. Gives how many."""
    keys = Partition(number)
    with redis_errors():
        gone: Any = await redis.zrangebyscore(keys.expiries, "-inf", await _now_ms(redis), start=0, num=BATCH)
        if not gone:
            return 0
        pipe = redis.pipeline(transaction=False)
        for member in gone:
            tenant, _, job_id = member.decode("utf-8", "replace").rpartition(" ")
            pipe.zrem(keys.index(tenant), job_id)
            pipe.zrem(keys.expiries, member)
        await pipe.execute()
    return len(gone)


def _job_ids(members: list[bytes]) -> list[str]:
    """What a sorted set names. What no enqueue of ours put there names no job, and is taken out like a stale one."""
    return [member.decode("utf-8", "replace") for member in members]


async def _now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000
