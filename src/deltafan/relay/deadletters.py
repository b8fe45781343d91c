"""`/v1/dead`: a tenant's jobs that failed for good: look at them, run them again, or forget them."""

from __future__ import annotations

import re
from typing import Any

import orjson
from aiohttp import web

from deltafan.broker.dead import DeadLetter, drop_dead, retry_dead
from deltafan.broker.letters import tenant_letter, tenant_letters
from deltafan.errors import FieldError, JobNotFound, ValidationError
from deltafan.job import JOB_ID
from deltafan.relay.answers import answer
from deltafan.relay.context import queue_of, urls
from deltafan.relay.principal import require
from deltafan.settings import QUEUE_NAME

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
_ECHOED = 64
"""Characters of an unknown id that the answer repeats."""


async def listing(request: web.Request) -> web.Response:
    require(request, "admin", all_jobs=True)
    queue, name = queue_of(request), _queue(request)
    letters, more = await tenant_letters(
        queue.connections.commands, queue.settings.partitions, name, queue.tenant, _limit(request.query.get("limit"))
    )
    return answer({"dead": [_shown(letter) for letter in letters], "more": more})


async def retry(request: web.Request) -> web.Response:
    """The dead job runs again as a new job, which is answered."""
    queue, letter = queue_of(request), await _letter(request)
    enqueued = await retry_dead(queue.connections.commands, letter, queue.limits)
    body = {"id": enqueued.id, "state": enqueued.state, "retry_of": letter.job_id} | urls(enqueued.id)
    return answer(body, 202, {"Location": urls(enqueued.id)["status_url"]})


async def drop(request: web.Request) -> web.Response:
    letter = await _letter(request)
    await drop_dead(queue_of(request).connections.commands, letter)
    return answer({"id": letter.job_id, "dropped": True})


async def _letter(request: web.Request) -> DeadLetter:
    """:raises Refusal: who asks may not.
    :raises JobNotFound: what cannot be an id is the id of no job.
    """
    require(request, "admin", all_jobs=True)
    job_id, name, queue = request.match_info["id"], _queue(request), queue_of(request)
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id[:_ECHOED])
    return await tenant_letter(queue.connections.commands, name, queue.tenant, job_id)


def _shown(letter: DeadLetter) -> dict[str, Any]:
    """Without the job itself, which may be large and is its user's."""
    shown = letter.to_dict()
    del shown["tenant"], shown["job"]
    return shown | {"model": _model(letter.job), "status_url": urls(letter.job_id)["status_url"]}


def _model(job: str) -> str | None:
    try:
        value = orjson.loads(job)
    except orjson.JSONDecodeError:
        return None
    model = value.get("model") if isinstance(value, dict) else None
    return model if isinstance(model, str) else None


def _queue(request: web.Request) -> str:
    name = request.query.get("queue", "default")
    if not re.fullmatch(QUEUE_NAME, name):
        raise ValidationError(
            [FieldError("queue", "must be a queue's name: lower case letters, digits, - and _, at most 64")]
        )
    return name


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise ValidationError([FieldError("limit", f"must be from 1 to {MAX_LIMIT}")])
    return int(text)
