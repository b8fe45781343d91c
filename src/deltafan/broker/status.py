"""A job's record: what `GET /v1/jobs/{id}`, `job.status()` and `deltafan show` tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.intake import taken
from deltafan.broker.keys import Partition, partition
from deltafan.errors import JobNotFound
from deltafan.job import ENDED, JOB_ID, JobState

_FIELDS = (
    "state",
    "tenant",
    "queue",
    "priority",
    "model",
    "provider",
    "attempt",
    "seq",
    "failures",
    "max_attempts",
    "created",
    "started",
    "claimed",
    "ended",
    "finish_reason",
    "chars",
    "usage",
    "error",
    "errors",
    "timings",
    "sinks",
    "metadata",
    "cancel",
    "owner",
    "retry_of",
    "channel",
    "pusher_channels",
    "subject",
    "cancel_if_abandoned",
)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of a job. Times are Unix times in milliseconds by Redis's clock; `None` is not yet."""

    id: str
    state: JobState
    tenant: str
    queue: str
    priority: str
    model: str
    provider: str | None
    attempt: int
    """The run that the log is in; 0 before the first."""
    failures: int
    """Runs that have failed. Being handed over by a draining worker is not a failure."""
    max_attempts: int | None
    created: int
    started: int | None
    claimed: int | None
    """When the present attempt began."""
    ended: int | None
    last_id: str | None
    finish_reason: str | None
    text_length: int
    cancelling: bool
    usage: dict[str, Any] | None
    """The sum over all attempts."""
    error: dict[str, Any] | None
    attempt_errors: list[dict[str, Any]]
    timings: dict[str, float]
    sinks: dict[str, Any]
    """Further sinks by name, told when the job has ended: `state` is `delivering` for as long as the job waits for it;
    then `delivered`; `behind`, which ran out of its time;
    `incomplete`, which refused some events for good (`refused` batches); or `failed`, which refused them all. `last_id`
    is what each has got, `error` why it has not got more."""
    metadata: dict[str, Any]
    worker: str | None
    retry_of: str | None = field(default=None)
    """The dead job that this one runs again."""
    channel: str | None = field(default=None)
    """The Redis channel of the user's to which the events go as well."""
    pusher_channels: tuple[str, ...] = field(default=())
    """The Pusher channels to which they go."""
    subject: str | None = field(default=None)
    """The end user whose job it is."""
    cancel_if_abandoned: float | None = field(default=None)
    """Seconds after which it is cancelled when nobody follows it."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def to_dict(self) -> dict[str, Any]:
        """For users: without the tenant and the worker's name, which are the operator's."""
        hidden = {"tenant", "worker"}
        return {name: getattr(self, name) for name in self.__slots__ if name not in hidden}


def _number(text: bytes | None) -> int | None:
    return int(text) if text else None


def _text(text: bytes | None) -> str | None:
    return text.decode() if text else None


def _json(text: bytes | None, default: Any) -> Any:
    return orjson.loads(text) if text else default


def _status(job_id: str, values: Sequence[bytes | None]) -> JobStatus:
    h = dict(zip(_FIELDS, values, strict=True))
    attempt, seq = _number(h["attempt"]) or 0, _number(h["seq"])
    return JobStatus(
        id=job_id,
        state=(h["state"] or b"").decode(),  # type: ignore[arg-type]
        tenant=_text(h["tenant"]) or "default",
        queue=_text(h["queue"]) or "default",
        priority=_text(h["priority"]) or "normal",
        model=_text(h["model"]) or "",
        provider=_json(h["provider"], None),
        attempt=attempt,
        failures=_number(h["failures"]) or 0,
        max_attempts=_number(h["max_attempts"]),
        created=_number(h["created"]) or 0,
        started=_number(h["started"]),
        claimed=_number(h["claimed"]),
        ended=_number(h["ended"]),
        last_id=f"{attempt}-{seq}" if attempt and seq is not None and seq >= 0 else None,
        finish_reason=_text(h["finish_reason"]),
        text_length=_number(h["chars"]) or 0,
        cancelling=h["cancel"] == b"1" and h["state"] == b"running",
        usage=_json(h["usage"], None),
        error=_json(h["error"], None),
        attempt_errors=_json(h["errors"], []),
        timings=_json(h["timings"], {}),
        sinks=_json(h["sinks"], {}),
        metadata=_json(h["metadata"], {}),
        worker=_text(h["owner"]),
        retry_of=_text(h["retry_of"]),
        channel=_text(h["channel"]),
        pusher_channels=tuple(_json(h["pusher_channels"], ())),
        subject=_text(h["subject"]),
        cancel_if_abandoned=float(patience) if (patience := h["cancel_if_abandoned"]) else None,
    )


async def read_status(redis: Redis, job_id: str, tenant: str | None = None) -> JobStatus:
    """Read a job's record.

    A job that was XADDed by hand and that no worker has seen has no record yet; it is `queued` while its entry waits.

    :param tenant: whose it must be; `None` for any.
    :raises ValidationError: not a job id.
    :raises JobNotFound: no such job, another tenant's, or its record has expired.
    """
    keys = partition(job_id)
    with redis_errors():
        values: Any = await redis.hmget(keys.job(job_id), _FIELDS)
        if values[0] is None:
            return await _raw_status(redis, keys, job_id, tenant)
    status = _status(job_id, values)
    if tenant is not None and status.tenant != tenant:
        raise JobNotFound(job_id)
    return status


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a listing looks at before it reads whole records."""

    state: str
    metadata_bytes: int


async def read_sketches(redis: Redis, number: int, job_ids: Sequence[str]) -> Mapping[str, Sketch]:
    """As `read_statuses`, of very many jobs: their metadata stays where it is."""
    keys = Partition(number)
    pipe = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.hget(keys.job(job_id), "state")
        pipe.hstrlen(keys.job(job_id), "metadata")
    with redis_errors():
        rows: Any = await pipe.execute()
    pairs = zip(job_ids, rows[::2], rows[1::2], strict=True)
    return {job_id: Sketch(state.decode(), size) for job_id, state, size in pairs if state is not None}


async def read_statuses(redis: Redis, number: int, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
    """The records of jobs of one partition, in one round trip; those that have expired are left out."""
    keys = Partition(number)
    pipe = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.hmget(keys.job(job_id), _FIELDS)
    with redis_errors():
        rows: Any = await pipe.execute()
    return {
        job_id: _status(job_id, values) for job_id, values in zip(job_ids, rows, strict=True) if values[0] is not None
    }


async def _raw_status(redis: Redis, keys: Partition, job_id: str, tenant: str | None) -> JobStatus:
    """A job whose id follows from its entry's place. An entry with a name of its own, or that our enqueue made for
    somebody, is not found by its place: it belongs to another job, and maybe to another tenant."""
    parts = job_id.split("-")
    if JOB_ID.fullmatch(job_id) and len(parts) >= 5 and parts[-1].isdigit() and parts[-2].isdigit():
        entry, priority, queue = "-".join(parts[-2:]), parts[-3], "-".join(parts[1:-3])
        if len(parts[-2]) <= 15 and len(parts[-1]) <= 15 and tenant in (None, "default"):
            found: Any = await redis.xrange(keys.queue(queue, priority), min=entry, max=entry)
            if found and taken(keys.number, queue, priority, entry, found[0][1]).job_id == job_id:
                record = {"state": b"queued", "queue": queue.encode(), "priority": priority.encode()}
                record["created"] = parts[-2].encode()
                return _status(job_id, [record.get(name) for name in _FIELDS])
    raise JobNotFound(job_id)
