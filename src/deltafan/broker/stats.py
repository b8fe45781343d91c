"""How full the queues are, who works on them, and what became of a tenant's newest jobs: the numbers of a dashboard.

Everything here is bounded, and cheap enough to be asked for every second: lengths and summaries of streams, and a few
fields of a bounded number of records. No key space is scanned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import GROUP, TAKEOVER, Partition
from deltafan.job import DEFAULT_PRIORITY, PRIORITIES, partition_of

MAX_WORKERS = 500
"""Heartbeats that one look reads."""
_PLACES = (TAKEOVER, *PRIORITIES)
_FIELDS = ("state", "queue", "model", "attempt", "seq", "chars", "created", "ended", "usage", "timings", "error")


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Jobs of all tenants in one queue."""

    queue: str
    waiting: dict[str, int]
    """By priority; `takeover` are jobs that a lost worker had begun."""
    running: int
    delayed: int
    dead: int


@dataclass(frozen=True, slots=True)
class WorkerBeat:
    """What a worker said in its last heartbeat."""

    name: str
    host: str
    pid: int
    running: int


@dataclass(frozen=True, slots=True)
class RecentJob:
    """Times are Unix times in milliseconds by Redis's clock."""

    id: str
    state: str
    queue: str
    model: str
    attempt: int
    seq: int
    """Of the attempt's last event; -1 before the first."""
    text_length: int
    created: int
    ended: int | None
    completion_tokens: int | None
    cost_usd: float | None
    timings: dict[str, float]
    error: str | None
    """The code of the job's error."""


async def now_ms(redis: Redis) -> int:
    """Redis's clock, by which all times of jobs are taken."""
    with redis_errors():
        seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def queue_depths(redis: Redis, partitions: int, queues: Sequence[str]) -> list[QueueDepth]:
    """What waits, runs and is dead in these queues, over all partitions, in one round trip."""
    pipe = redis.pipeline(transaction=False)
    for queue in queues:
        for number in range(partitions):
            keys = Partition(number)
            for place in _PLACES:
                pipe.xlen(keys.queue(queue, place))
                pipe.xpending(keys.queue(queue, place), GROUP)
            pipe.zcard(keys.delayed(queue))
            pipe.xlen(keys.dead(queue))
    with redis_errors():
        rows: Any = await pipe.execute(raise_on_error=False) if queues else []
    answers = iter(rows)
    return [_depth(queue, [_place_counts(answers) for _ in range(partitions)]) for queue in queues]


def _place_counts(answers: Any) -> tuple[dict[str, int], int, int, int]:
    """One partition's share: waiting by priority, running, delayed, dead."""
    waiting, running = dict.fromkeys(_PLACES, 0), 0
    for place in _PLACES:
        length, held = _count(next(answers)), _held(next(answers))
        waiting[place] = max(0, length - held)
        running += held
    return waiting, running, _count(next(answers)), _count(next(answers))


def _depth(queue: str, shares: list[tuple[dict[str, int], int, int, int]]) -> QueueDepth:
    return QueueDepth(
        queue=queue,
        waiting={place: sum(share[0][place] for share in shares) for place in _PLACES},
        running=sum(share[1] for share in shares),
        delayed=sum(share[2] for share in shares),
        dead=sum(share[3] for share in shares),
    )


def _count(answer: object) -> int:
    """A key of another type is no queue of ours, and counts for nothing."""
    return answer if isinstance(answer, int) else 0


def _held(answer: object) -> int:
    """An error says that no worker has made the group yet."""
    return int(answer["pending"]) if isinstance(answer, dict) else 0


async def worker_beats(redis: Redis, queues: Sequence[str]) -> list[WorkerBeat]:
    """The workers of these queues that live. They read every partition, so one tells them all."""
    keys = Partition(0)
    pipe = redis.pipeline(transaction=False)
    for queue in queues:
        pipe.xinfo_consumers(keys.queue(queue, DEFAULT_PRIORITY), GROUP)
    with redis_errors():
        answers: Any = await pipe.execute(raise_on_error=False) if queues else []
        names = sorted(
            {
                consumer["name"].decode("utf-8", "replace")
                for answer in answers
                if not isinstance(answer, ResponseError)
                for consumer in answer
            }
        )[:MAX_WORKERS]
        beats: Any = await redis.mget([keys.worker(name) for name in names]) if names else []
    return [_beat(name, orjson.loads(beat)) for name, beat in zip(names, beats, strict=True) if beat]


async def worker_beat(redis: Redis, worker: str) -> WorkerBeat | None:
    """The last heartbeat of one worker; `None` when it has been silent for a lease."""
    with redis_errors():
        beat: Any = await redis.get(Partition(0).worker(worker))
    return _beat(worker, orjson.loads(beat)) if beat else None


def _beat(name: str, said: dict[str, Any]) -> WorkerBeat:
    return WorkerBeat(name, str(said.get("host", "")), int(said.get("pid", 0)), int(said.get("running", 0)))


async def recent_jobs(redis: Redis, partitions: int, tenant: str, limit: int) -> list[RecentJob]:
    """The tenant's newest jobs, the newest first."""
    found: list[tuple[int, str]] = []
    with redis_errors():
        for number in range(partitions):
            rows: Any = await redis.zrevrange(Partition(number).index(tenant), 0, limit - 1, withscores=True)
            found += [(int(score), member.decode("utf-8", "replace")) for member, score in rows]
        ids = [job_id for _, job_id in sorted(found, reverse=True)[:limit]]
        pipe = redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(Partition(partition_of(job_id)).job(job_id), _FIELDS)
        records: Any = await pipe.execute() if ids else []
    return [_recent(job_id, values) for job_id, values in zip(ids, records, strict=True) if values[0] is not None]


def _recent(job_id: str, values: Sequence[bytes | None]) -> RecentJob:
    h = dict(zip(_FIELDS, values, strict=True))
    usage = orjson.loads(h["usage"] or b"{}")
    return RecentJob(
        id=job_id,
        state=(h["state"] or b"").decode(),
        queue=(h["queue"] or b"default").decode(),
        model=(h["model"] or b"").decode(),
        attempt=int(h["attempt"] or 0),
        seq=int(h["seq"] or -1),
        text_length=int(h["chars"] or 0),
        created=int(h["created"] or 0),
        ended=int(h["ended"]) if h["ended"] else None,
        completion_tokens=usage.get("completion_tokens"),
        cost_usd=usage.get("cost_usd"),
        timings=orjson.loads(h["timings"] or b"{}"),
        error=orjson.loads(h["error"]).get("code") if h["error"] else None,
    )


async def created_since(redis: Redis, partitions: int, tenant: str, since_ms: int) -> int:
    """How many jobs the tenant has made since then."""
    pipe = redis.pipeline(transaction=False)
    for number in range(partitions):
        pipe.zcount(Partition(number).index(tenant), since_ms, "+inf")
    with redis_errors():
        return sum(await pipe.execute())
