"""Entries that were XADDed by hand: making a job of one, and ending one that never becomes a job."""

from __future__ import annotations

from typing import Any

import orjson
from redis.asyncio import Redis

from deltafan.broker import enqueue as build
from deltafan.broker.connections import redis_errors
from deltafan.broker.intake import Taken
from deltafan.broker.keys import GROUP, TAKEOVER, Partition
from deltafan.broker.scripts import REJECT
from deltafan.channels import CHANNEL_MAX, channel_problem
from deltafan.errors import ConflictError, FieldError, ValidationError
from deltafan.job import DEFAULT_PRIORITY, JobSpec, parse_spec
from deltafan.settings import JobLimits, Retention

_REJECTED_TEXT = 4096
"""Bytes of a rejected entry that its dead letter keeps."""
_REASON = 1000
"""Characters of the reason that it keeps."""


async def adopt(redis: Redis, taken: Taken, limits: JobLimits, retention: Retention) -> bool:
    """Make a job of an entry; one that is no job becomes a dead letter with the reason.

    :return: whether it may be claimed.
    """
    try:
        spec = raw_spec(taken, limits)
    except ValidationError as error:
        await reject(redis, taken, str(error), retention)
        return False
    call = build.build(
        spec,
        taken.job_id,
        tenant="default",
        max_queue=limits.max_queue,
        adopt=taken.entry,
        created_ms=int(taken.entry.partition("-")[0]) if taken.priority != TAKEOVER else None,
    )
    call_keys = (call.keys[0], taken.stream, *call.keys[2:])
    with redis_errors():
        answer: Any = await call.script.run(redis, call_keys, call.args)
    try:
        enqueued = build.outcome(spec, answer)
    except ConflictError as error:
        await reject(redis, taken, str(error), retention)
        return False
    if enqueued is None:  # the id has a record: ours, when the reply of our first try was lost
        return True
    return enqueued.created and enqueued.state == "queued"


async def reject(redis: Redis, taken: Taken, reason: str, retention: Retention) -> None:
    """End an entry that is no job."""
    priority = taken.priority if taken.priority != TAKEOVER else DEFAULT_PRIORITY
    text = (taken.raw or b"")[:_REJECTED_TEXT]
    await _end(redis, taken.job_id, taken.entry, taken.stream, taken.queue, priority, retention, text, reason[:_REASON])


async def cancel_unseen(redis: Redis, job_id: str, entry: str, queue: str, priority: str, retention: Retention) -> bool:
    """Cancel an entry that no worker has seen. False: one has, meanwhile."""
    stream = Partition(int(job_id.partition("-")[0])).queue(queue, priority)
    return await _end(redis, job_id, entry, stream, queue, priority, retention)


async def _end(
    redis: Redis,
    job_id: str,
    entry: str,
    stream: str,
    queue: str,
    priority: str,
    retention: Retention,
    text: bytes = b"",
    reason: str = "",
) -> bool:
    keys = Partition(int(job_id.partition("-")[0]))
    with redis_errors():
        answer = await REJECT.run(
            redis,
            [*keys.of_job(job_id), stream, keys.index("default"), keys.expiries, keys.dead(queue)],
            [
                job_id,
                entry,
                GROUP,
                text,
                reason,
                build.meta_fragment("", {}),
                retention.retention,
                queue,
                priority,
            ],
        )
    return bool(answer)


def raw_spec(taken: Taken, limits: JobLimits) -> JobSpec:
    """Read an entry that was XADDed by hand: one field, `job`, a spec that may bring an `id` of its own.

    :raises ValidationError: naming what is wrong.
    """
    raw = taken.raw or b""
    if taken.size > limits.max_bytes:
        raise ValidationError([FieldError("job", f"is {taken.size:,} bytes; at most {limits.max_bytes:,} are taken")])
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ValidationError([FieldError("job", f"is not JSON: {error}")]) from None
    if not isinstance(value, dict):
        raise ValidationError([FieldError("job", "must be a JSON object")])
    places = {"queue": taken.queue} | ({"priority": taken.priority} if taken.priority != TAKEOVER else {})
    for name, place in places.items():
        if value.setdefault(name, place) != place:
            raise ValidationError([FieldError(name, f"must be {place!r}, like the stream's, or left out")])
    named = value.pop("id", None)
    if named is not None and named != taken.job_id:
        rule = f"must be a string: {taken.partition}- and then 1 to 150 letters, digits, _ or -"
        raise ValidationError([FieldError("id", rule)])
    spec = parse_spec(value, limits)
    for channel in spec.channels_on_pusher(taken.job_id):
        if problem := channel_problem(channel):
            raise ValidationError([FieldError("id", f"its channel {channel[:CHANNEL_MAX]!r} {problem}")])
    return spec
