"""What the handlers of one relay share, and how they find it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.broker.status import JobStatus
from deltafan.channels import JOB_CHANNEL
from deltafan.errors import JobNotFound
from deltafan.job import JOB_ID
from deltafan.relay.keys import Right
from deltafan.relay.outage import RelayOutage
from deltafan.relay.ownership import Ownership
from deltafan.relay.principal import Principal, principal_of, require
from deltafan.relay.streams import Streams
from deltafan.settings import PusherSettings
from deltafan.tokens import TokenKeys

QUEUE: Final = web.AppKey("queue", AsyncQueue)
OUTAGE: Final = web.AppKey("outage", RelayOutage)
STREAMS: Final = web.AppKey("streams", Streams)
OWNERSHIP: Final = web.AppKey("ownership", Ownership)
TOKEN_KEYS: Final = web.AppKey("token_keys", TokenKeys)
"""Not there when no token keys are set."""
PUSHER: Final = web.AppKey("pusher", PusherSettings)

_ECHOED = 64
"""Characters of an unknown id that the answer repeats."""


def queue_of(request: web.Request) -> AsyncQueue:
    """The queue as the request's tenant sees it.

    :raises Refusal: nobody was let in.
    """
    return request.app[QUEUE].for_tenant(principal_of(request).tenant)


async def job_of(request: web.Request, right: Right) -> tuple[AsyncJob, JobStatus]:
    """The job that the path names, and its record, for who has a right to it.

    :raises Refusal: who asks has the right to no job.
    :raises JobNotFound: no such job, or none that who asks may know of. What cannot be an id is the id of no job.
    """
    principal = require(request, right)
    job_id = request.match_info["id"]
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id[:_ECHOED])
    job = queue_of(request).job(job_id)
    status = await job.status()
    if not may_follow(request, principal, status):
        raise JobNotFound(job_id)
    return job, status


def may_follow(request: web.Request, principal: Principal, status: JobStatus) -> bool:
    """Whether a job of the principal's tenant is in its scope: all are, but for who holds a stream token."""
    if principal.grant is None:
        return True
    ownership = request.app[OWNERSHIP]

    def mine(channel: str) -> bool:
        return channel.startswith(JOB_CHANNEL) or ownership.is_of(principal.tenant, channel)

    return principal.grant.covers(status, mine)


def urls(job_id: str) -> dict[str, str]:
    """Where a job is found, relative to the relay, which cannot know under which name a proxy shows it."""
    base = f"/v1/jobs/{job_id}"
    return {"events_url": f"{base}/events", "status_url": base, "cancel_url": f"{base}/cancel"}
