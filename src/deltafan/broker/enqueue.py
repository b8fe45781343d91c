"""From a validated spec to a job in Redis: building the command, without I/O of its own."""

from __future__ import annotations

import hashlib
import secrets
import time
import zlib
from dataclasses import dataclass
from typing import Any, Final

import orjson

from deltafan.broker.keys import GROUP, Partition
from deltafan.broker.scripts import ENQUEUE, Arg, Call, pairs
from deltafan.errors import ConflictError, FieldError, QueueFull, ValidationError
from deltafan.job import JobSpec, JobState

IDEMPOTENCY_TTL: Final = 24 * 3600.0
"""Seconds an idempotency key is kept beyond the job's longest wait: a day, as payment APIs do."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What enqueue gave: the job's id and state; `created` is false for an idempotency key's first job."""

    id: str
    state: JobState
    created: bool


def new_job_id(number: int) -> str:
    """A fresh id in a partition: the time in milliseconds, so that ids sort by age, and 64 random bits."""
    return f"{number}-{time.time_ns() // 1_000_000:011x}{secrets.token_hex(8)}"


def choose_partition(partitions: int, tenant: str, spec: JobSpec) -> int:
    """Any partition; the same one for the same idempotency key."""
    if spec.idempotency_key is None:
        return secrets.randbelow(partitions)
    return zlib.crc32(f"{tenant}\0{spec.idempotency_key}".encode()) % partitions


def meta_fragment(model: str, metadata: dict[str, Any]) -> bytes:
    """The part of `meta` that is known before a worker takes the job: `"model":…,"metadata":…`."""
    return orjson.dumps({"model": model, "metadata": metadata})[1:-1]


def _on_takeover(spec: JobSpec) -> str:
    """What `claim.lua` goes by: with `fail_if_lost` a job that is handed over goes on from its text, if the model can.

    Only plain text of one choice can be gone on from: a half-made tool call cannot be prefilled.
    """
    tools = spec.tools or spec.params.get("tools") or spec.params.get("functions") or spec.params.get("n", 1) != 1
    if spec.on_takeover == "continue":
        return "restart" if tools else "continue"
    return "fail_if_lost" if spec.on_takeover == "fail" and not tools else spec.on_takeover


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else str(round(seconds * 1000))


def build(
    spec: JobSpec,
    job_id: str,
    *,
    tenant: str,
    max_queue: int,
    adopt: str = "",
    created_ms: int | None = None,
    retry_of: str | None = None,
) -> Call:
    """The call of `enqueue.lua`. With `adopt`, the entry that was XADDed by hand becomes the job's place."""
    number = int(job_id.partition("-")[0])
    keys = Partition(number)
    digest = ""
    if spec.idempotency_key is not None:
        digest = hashlib.sha256(spec.to_json()).hexdigest()
    waits = max(spec.delay or 0.0, spec.run_at.timestamp() - time.time() if spec.run_at else 0.0)
    metadata = spec.model_dump(mode="json", include={"metadata"})["metadata"]  # a Python caller's may hold a set, say
    record: dict[str, Arg] = {
        "spec": spec.to_json(),
        "meta": meta_fragment(spec.model, metadata),
        "metadata": orjson.dumps(metadata),
        "model": spec.model,
        "queue": spec.queue,
        "priority": spec.priority,
        "channel": spec.channel or "",
        "on_takeover": _on_takeover(spec),
        "max_attempts": spec.max_attempts if spec.max_attempts is not None else "",
        "retention": spec.retention if spec.retention is not None else "",
        "errors": "[]",
    }
    if spec.subject is not None:
        record["subject"] = spec.subject
    if spec.cancel_if_abandoned is not None:
        record["cancel_if_abandoned"] = spec.cancel_if_abandoned
    if channels := spec.channels_on_pusher(job_id):
        record["pusher_channels"] = orjson.dumps(channels)
    if retry_of is not None:
        record["retry_of"] = retry_of
    args: list[Arg] = [
        job_id,
        tenant,
        created_ms if created_ms is not None else "",
        _ms(spec.delay),
        _ms(spec.run_at.timestamp()) if spec.run_at else "",
        _ms(spec.expires_in),
        digest,
        _ms(IDEMPOTENCY_TTL + waits),
        max_queue,
        GROUP,
        adopt,
        spec.model,
        *pairs(record),
    ]
    return Call(
        ENQUEUE,
        (
            keys.job(job_id),
            keys.queue(spec.queue, spec.priority),
            keys.delayed(spec.queue),
            keys.deadlines,
            keys.index(tenant),
            keys.idempotency(tenant, spec.idempotency_key) if spec.idempotency_key else keys.job(job_id),
        ),
        tuple(args),
    )


def outcome(spec: JobSpec, answer: list[bytes]) -> Enqueued | None:
    """Read the script's answer. `None`: the id is taken, try another.

    :raises ConflictError: the idempotency key belongs to a job with another spec.
    :raises QueueFull: the queue is at its bound.
    """
    status, job_id = answer[0].decode(), answer[1].decode()
    match status:
        case "queued" | "delayed":
            return Enqueued(job_id, "queued" if status == "queued" else "delayed", created=True)
        case "same":
            return Enqueued(job_id, "queued", created=False)
        case "conflict":
            raise ConflictError(f"idempotency_key: {spec.idempotency_key!r} belongs to job {job_id}, which is another")
        case "full":
            raise QueueFull(f"queue {spec.queue!r} is full; try again later")
        case "taken":
            return None
        case _:
            raise ValidationError([FieldError("", f"unexpected answer of Redis: {status}")])
