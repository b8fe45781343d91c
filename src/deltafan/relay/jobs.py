"""`/v1/jobs`: enqueue, look at, cancel and list jobs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from deltafan.broker.listing import MAX_LIMIT
from deltafan.broker.status import JobStatus
from deltafan.errors import FieldError, ValidationError
from deltafan.job import parse_spec
from deltafan.relay.answers import Refusal, answer
from deltafan.relay.body import json_object, read_body
from deltafan.relay.context import OWNERSHIP, TOKEN_KEYS, job_of, queue_of, urls
from deltafan.relay.principal import principal_of, require
from deltafan.relay.pusher_auth import pusher_of

DEFAULT_LIMIT = 50


async def enqueue(request: web.Request) -> web.Response:
    principal = require(request, "enqueue", all_jobs=True)
    queue = queue_of(request)
    spec = parse_spec(_with_key(await _body(request), request.headers.get("Idempotency-Key")), queue.limits)
    request.app[OWNERSHIP].check(principal.tenant, spec)
    enqueued = await queue.submit(spec)
    job = queue.job(enqueued.id)
    links = urls(job.id)
    return answer(
        {"id": job.id, "state": enqueued.state, "channel": spec.channel or job.channel}
        | links
        | _token(request, principal.tenant, job.id)
        | pusher_of(request, spec.channels_on_pusher(job.id)),
        202,
        {"Location": links["status_url"]},
    )


async def status(request: web.Request) -> web.Response:
    _, found = await job_of(request, "read")
    return answer(_shown(request, found))


async def cancel(request: web.Request) -> web.Response:
    """202 while the worker still has to end the job; 200 when it has ended, by this or otherwise."""
    job, _ = await job_of(request, "cancel")
    outcome = await job.cancel()
    code = 202 if outcome.state == "cancelling" else 200
    return answer({"id": job.id, "state": outcome.state, "cancelled": outcome.cancelled} | urls(job.id), code)


async def interest(request: web.Request) -> web.Response:
    """Somebody follows the job where Redis does not see it."""
    job, _ = await job_of(request, "read")
    return answer({"id": job.id, "renew_in": await job.renew_interest()})


async def listing(request: web.Request) -> web.Response:
    require(request, "read", all_jobs=True)
    query = request.query
    page = await queue_of(request).jobs(
        state=query.get("state"), limit=_limit(query.get("limit")), cursor=query.get("cursor")
    )
    return answer({"jobs": [job.to_dict() | urls(job.id) for job in page.jobs], "cursor": page.cursor})


def _shown(request: web.Request, status: JobStatus) -> dict[str, Any]:
    """A job's record. Who holds a token is not told why a sink is behind, which may name addresses; who has something
    hidden, not the channels on which it is shown."""
    principal = principal_of(request)
    shown = status.to_dict() | urls(status.id)
    if principal.grant is not None:
        shown["sinks"] = {
            name: {field: value for field, value in standing.items() if field != "error"}
            for name, standing in status.sinks.items()
        }
    if principal.hide:
        return shown | {"channel": None, "pusher_channels": []}
    return shown | pusher_of(request, status.pusher_channels)


def _token(request: web.Request, tenant: str, job_id: str) -> dict[str, str]:
    keys = request.app.get(TOKEN_KEYS)
    return {} if keys is None else {"token": keys.mint(tenant, jobs=[job_id], cancel=True)}


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise Refusal(415, "send the job as JSON, with Content-Type: application/json")
    return json_object(await read_body(request, request.client_max_size))


def _with_key(body: dict[str, Any], key: str | None) -> dict[str, Any]:
    """The key of the `Idempotency-Key` header, as if it stood in the body."""
    if key is None:
        return body
    if body.get("idempotency_key", key) != key:
        raise ValidationError([FieldError("idempotency_key", "differs from the Idempotency-Key header")])
    return {**body, "idempotency_key": key}


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise ValidationError([FieldError("limit", f"must be from 1 to {MAX_LIMIT}")])
    return int(text)
