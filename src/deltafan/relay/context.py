"""What the handlers of one relay share, and how they find it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.errors import JobNotFound
from deltafan.job import JOB_ID
from deltafan.relay.access import TENANT
from deltafan.relay.streams import Streams

QUEUE: Final = web.AppKey("queue", AsyncQueue)
STREAMS: Final = web.AppKey("streams", Streams)

_ECHOED = 64
"""Characters of an unknown id that the answer repeats."""


def queue_of(request: web.Request) -> AsyncQueue:
    """The queue as the request's tenant sees it."""
    return request.app[QUEUE].for_tenant(request[TENANT])


def job_of(request: web.Request) -> AsyncJob:
    """The job that the path names.

    :raises JobNotFound: what cannot be an id is the id of no job.
    """
    job_id = request.match_info["id"]
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id[:_ECHOED])
    return queue_of(request).job(job_id)


def urls(job_id: str) -> dict[str, str]:
    """Where a job is found, relative to the relay, which cannot know under which name a proxy shows it."""
    base = f"/v1/jobs/{job_id}"
    return {"events_url": f"{base}/events", "status_url": base, "cancel_url": f"{base}/cancel"}
