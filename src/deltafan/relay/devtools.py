"""`POST /dev/kill-worker`: kills the process that runs a job, so that a visitor of the page sees the job go on.

Only in the open mode of one's own machine, and only with `dev_tools`. The access middleware has already refused what a
foreign page could make a browser send.
"""

from __future__ import annotations

import os
import signal
import socket

from aiohttp import web

from deltafan.broker.stats import WorkerBeat, worker_beat
from deltafan.broker.status import read_status
from deltafan.errors import FieldError, JobNotFound, ValidationError
from deltafan.job import JOB_ID
from deltafan.relay.answers import Refusal, answer
from deltafan.relay.body import json_object, read_body
from deltafan.relay.context import queue_of
from deltafan.relay.credentials import is_same_origin
from deltafan.relay.principal import require

MAX_BODY = 1024


async def kill_worker(request: web.Request) -> web.Response:
    """Body: `{"job": id}`. Answers with the process that is no more."""
    require(request, "admin", all_jobs=True)
    origin = request.headers.get("Origin")
    if origin is not None and not is_same_origin(request, origin):
        raise Refusal(403, "only this relay's own page may kill a worker")
    queue, job_id = queue_of(request), await _job(request)
    status = await read_status(queue.connections.commands, job_id, queue.tenant)
    if status.state != "running" or status.worker is None:
        raise Refusal(409, f"job {job_id} is {status.state}: no worker runs it now", code="not_running")
    beat = await worker_beat(queue.connections.commands, status.worker)
    if beat is None:
        raise Refusal(409, "the worker of this job is silent: it has died already", code="not_running")
    _kill(beat)
    return answer({"job": job_id, "worker": beat.name, "pid": beat.pid})


def _kill(beat: WorkerBeat) -> None:
    """:raises Refusal: the process is not one that may be killed from here."""
    if beat.host != socket.gethostname():
        raise Refusal(409, "the worker of this job runs on another machine", code="not_here")
    # Redis names the process. What is not a worker by its own name, or is this relay, stays alive.
    if beat.pid <= 1 or beat.pid in (os.getpid(), os.getppid()) or f"-{beat.pid}-" not in beat.name:
        raise Refusal(409, "the worker of this job is no process of its own", code="not_here")
    try:
        os.kill(beat.pid, signal.SIGKILL)
    except ProcessLookupError:
        raise Refusal(409, "the worker of this job has died already", code="not_running") from None
    except PermissionError:
        raise Refusal(409, "the worker of this job belongs to another user", code="not_here") from None


async def _job(request: web.Request) -> str:
    """The id in the body. JSON is asked for, because a form of another page could not send it."""
    if request.content_type != "application/json":
        raise Refusal(415, "send JSON, with Content-Type: application/json")
    job_id = json_object(await read_body(request, MAX_BODY)).get("job")
    if not isinstance(job_id, str):
        raise ValidationError([FieldError("job", "is required: the id of a running job")])
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id[:64])
    return job_id
