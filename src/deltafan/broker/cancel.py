"""Cancelling a job, from any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.adoption import cancel_unseen
from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import GROUP, partition
from deltafan.broker.scripts import CANCEL
from deltafan.broker.status import read_status
from deltafan.errors import BrokerUnavailable, JobNotFound
from deltafan.settings import Retention

_TRIES = 20
"""How often a job may change its place in the queue while we look for it."""


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """`state` is `cancelled` (it was waiting, and has ended), `cancelling` (its worker ends it) or the state in which
    the job had ended before; `cancelled` is whether this or an earlier cancel ends it."""

    state: str
    cancelled: bool


async def _cancel_raw(redis: Redis, job_id: str, tenant: str | None, retention: Retention) -> bool:
    """Cancel a job that was XADDed by hand and that no worker has seen."""
    status = await read_status(redis, job_id, tenant)
    entry = "-".join(job_id.split("-")[-2:])
    return await cancel_unseen(redis, job_id, entry, status.queue, status.priority, retention)


async def cancel_job(redis: Redis, job_id: str, tenant: str | None, retention: Retention) -> CancelOutcome:
    """Cancel a job of a tenant (`None` for any).

    :raises JobNotFound: no such job.
    """
    keys = partition(job_id)
    for _ in range(_TRIES):
        with redis_errors():
            place: Any = await redis.hmget(keys.job(job_id), ["stream", "queue"])
        if place[1] is None:
            if await _cancel_raw(redis, job_id, tenant, retention):
                return CancelOutcome("cancelled", cancelled=True)
            continue  # a worker has just claimed it
        queue = place[1].decode()
        stream = place[0].decode() if place[0] else keys.queue(queue, "normal")
        with redis_errors():
            answer: Any = await CANCEL.run(
                redis,
                [
                    *keys.of_job(job_id),
                    stream,
                    keys.delayed(queue),
                    keys.deadlines,
                    keys.expiries,
                ],
                [job_id, tenant or "", GROUP, retention.retention, keys.control],
            )
        match answer[0]:
            case b"unknown":
                raise JobNotFound(job_id)
            case b"ended":
                state = answer[1].decode()
                return CancelOutcome(state, cancelled=state == "cancelled")
            case b"cancelled" | b"cancelling":
                return CancelOutcome(answer[0].decode(), cancelled=True)
            case _:
                continue  # it moved from one stream to another meanwhile
    raise BrokerUnavailable("the job keeps changing its place in the queue; try again")
