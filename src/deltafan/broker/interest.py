"""Whether anybody follows a job: Redis counts its own subscribers; who listens elsewhere says so now and then."""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import partition
from deltafan.broker.listeners import listeners
from deltafan.broker.status import JobStatus

INTEREST: Final = 90.0
"""Seconds for which one renewal counts. Browsers run the timers of hidden pages once a minute."""
RENEWAL: Final = 30.0
"""Seconds between renewals, at the least: two may get lost."""


async def renew(redis: Redis, status: JobStatus) -> float | None:
    """Count as a follower of a job for `INTEREST`.

    :return: in how many seconds to renew it; `None`: the job has ended, or does not mind being alone.
    :raises BrokerUnavailable: Redis cannot be reached.
    """
    unseen = not status.model  # XADDed by hand, and no worker has looked at what it asks for
    if status.has_ended or (status.cancel_if_abandoned is None and not unseen):
        return None
    with redis_errors():
        await redis.set(partition(status.id).interest(status.id), 1, px=int(INTEREST * 1000))
    return max(RENEWAL, (status.cancel_if_abandoned or 0.0) / 3)


async def is_followed(redis: Redis, job_id: str, own: str | None) -> bool:
    """:param own: the job's channel of the user's.
    :raises BrokerUnavailable: Redis cannot be reached.
    """
    keys = partition(job_id)
    if await listeners(redis, keys.live(job_id), own):
        return True
    with redis_errors():
        return bool(await redis.exists(keys.interest(job_id)))
