"""What workers do so that nothing stays for ever: jobs that waited too long, entries of indexes, old dead letters.

Every function is safe to run in any number of workers at once.
"""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import GROUP, Partition
from deltafan.broker.scripts import EXPIRE, Call, run_all
from deltafan.broker.upkeep import BATCH, job_ids, now_ms
from deltafan.settings import Retention

MOST_BATCHES: Final = 50
"""Of jobs that have expired, in one look: as many as a busy deployment ends meanwhile, and no more than an instant's
work.
"""


async def expire(redis: Redis, number: int, retention: Retention) -> int:
    """End the jobs that have waited past their `expires_in`, in whatever queue, served or not. Gives how many."""
    ended = 0
    for _ in range(MOST_BATCHES):
        found, expired = await _expire_batch(redis, Partition(number), retention)
        ended += expired
        if found < BATCH:
            break
    return ended


async def _expire_batch(redis: Redis, keys: Partition, retention: Retention) -> tuple[int, int]:
    """How many were found, and how many of those have ended by it."""
    with redis_errors():
        now = await now_ms(redis, keys)
        late: Any = await redis.zrangebyscore(keys.deadlines, "-inf", now, start=0, num=BATCH)
        ids = job_ids(late)
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
    return len(late), answers.count(b"expired")


async def sweep(redis: Redis, number: int) -> int:
    """Take jobs whose record has expired out of their tenants' indexes. Gives how many."""
    swept = 0
    for _ in range(MOST_BATCHES):
        found = await _sweep_batch(redis, Partition(number))
        swept += found
        if found < BATCH:
            break
    return swept


async def _sweep_batch(redis: Redis, keys: Partition) -> int:
    with redis_errors():
        gone: Any = await redis.zrangebyscore(keys.expiries, "-inf", await now_ms(redis, keys), start=0, num=BATCH)
        if not gone:
            return 0
        pipe = redis.pipeline(transaction=False)
        for member in gone:
            tenant, _, job_id = member.decode("utf-8", "replace").rpartition(" ")
            pipe.zrem(keys.index(tenant), job_id)
            pipe.zrem(keys.expiries, member)
        await pipe.execute()
    return len(gone)


async def forget_letters(redis: Redis, number: int, queue: str, retention: Retention) -> int:
    """Take a queue's dead letters that are too old out of their stream. Gives how many.

    A letter holds a whole job: their number alone would bound nothing that a server can hold.
    """
    keys = Partition(number)
    with redis_errors():
        oldest = await now_ms(redis, keys) - int(retention.dead_retention * 1000)
        trimmed: Any = await redis.xtrim(keys.dead(queue), minid=str(max(0, oldest)), approximate=False)
    return int(trimmed)
