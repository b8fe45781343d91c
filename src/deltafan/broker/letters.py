"""A tenant's dead letters: listing them, and finding one, in pages of a bounded size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.dead import DeadLetter, not_dead, read_letter
from deltafan.broker.keys import Partition
from deltafan.job import partition_of

_PAGE = 50
"""Letters read at once: each holds a whole job."""
MAX_LOOKED_AT = 2000
"""Letters of a queue that one listing looks at. Where others' are among them, some of one's own may be farther down."""


async def tenant_letters(
    redis: Redis, partitions: int, queue: str, tenant: str, limit: int
) -> tuple[list[DeadLetter], bool]:
    """The tenant's newest dead letters in a queue, and whether there may be more."""
    letters: list[DeadLetter] = []
    more = False
    for number in range(partitions):
        looked_at = own = 0
        async for letter in _newest_first(redis, number, queue):
            if own == limit or looked_at == MAX_LOOKED_AT:
                more = True
                break
            looked_at += 1
            if letter.tenant == tenant:
                own += 1
                letters.append(letter)
    letters.sort(key=lambda letter: letter.died, reverse=True)
    return letters[:limit], more or len(letters) > limit


async def tenant_letter(redis: Redis, queue: str, tenant: str, job_id: str) -> DeadLetter:
    """The dead letter of one job.

    :raises JobNotFound: no such job, or another tenant's.
    :raises NotDead: the job has no dead letter in this queue; says what became of it.
    """
    async for letter in _newest_first(redis, partition_of(job_id), queue):
        if letter.job_id == job_id and letter.tenant == tenant:
            return letter
    raise await not_dead(redis, job_id, queue, tenant)


async def _newest_first(redis: Redis, number: int, queue: str) -> AsyncIterator[DeadLetter]:
    last = "+"
    while True:
        with redis_errors():
            rows: Any = await redis.xrevrange(Partition(number).dead(queue), max=last, count=_PAGE)
        for entry, fields in rows:
            yield read_letter(number, queue, entry, fields)
        if len(rows) < _PAGE:
            return
        last = f"({rows[-1][0].decode()}"
