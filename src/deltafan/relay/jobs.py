"""`/v1/jobs`: enqueue, look at, cancel and list jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from deltafan.broker.listing import MAX_LIMIT
from deltafan.errors import FieldError, ValidationError
from deltafan.job import parse_spec
from deltafan.relay.answers import Refusal, answer, too_large
from deltafan.relay.context import job_of, queue_of, urls

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
DEFAULT_LIMIT = 50


async def enqueue(request: web.Request) -> web.Response:
    queue = queue_of(request)
    spec = parse_spec(_with_key(await _body(request), request.headers.get("Idempotency-Key")), queue.limits)
    enqueued = await queue.submit(spec)
    job = queue.job(enqueued.id)
    links = urls(job.id)
    return answer(
        {"id": job.id, "state": enqueued.state, "channel": spec.channel or job.channel, **links},
        202,
        {"Location": links["status_url"]},
    )


async def status(request: web.Request) -> web.Response:
    found = await job_of(request).status()
    return answer(found.to_dict() | urls(found.id))


async def cancel(request: web.Request) -> web.Response:
    """202 while the worker still has to end the job; 200 when it has ended, by this or otherwise."""
    job = job_of(request)
    outcome = await job.cancel()
    code = 202 if outcome.state == "cancelling" else 200
    return answer({"id": job.id, "state": outcome.state, "cancelled": outcome.cancelled} | urls(job.id), code)


async def listing(request: web.Request) -> web.Response:
    query = request.query
    page = await queue_of(request).jobs(
        state=query.get("state"), limit=_limit(query.get("limit")), cursor=query.get("cursor")
    )
    return answer({"jobs": [job.to_dict() | urls(job.id) for job in page.jobs], "cursor": page.cursor})


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise Refusal(415, "send the job as JSON, with Content-Type: application/json")
    if (request.content_length or 0) > request.client_max_size:
        raise too_large(request.client_max_size)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ValidationError([FieldError("", "must be a JSON object")])
    return value


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
