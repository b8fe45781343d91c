"""Claiming a job, and every way in which a worker lets go of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError as PydanticError
from redis.asyncio import Redis

from deltafan.broker.adoption import adopt, reject
from deltafan.broker.connections import redis_errors
from deltafan.broker.intake import Taken
from deltafan.broker.keys import GROUP, TAKEOVER, Partition
from deltafan.broker.scripts import ACK, CLAIM, FINISH, RELEASE, RETRY, Arg, pairs
from deltafan.job import JobSpec, JobState
from deltafan.settings import JobLimits, Retention, WorkerSettings


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt that this worker owns."""

    taken: Taken
    job_id: str
    worker: str
    attempt: int
    spec: JobSpec = field(repr=False)
    understood: bool
    """False: the spec was written by a version that this one does not understand, and `spec` says nothing."""
    failures: int
    usage: bytes = field(repr=False)
    """The sum of earlier attempts, as JSON; empty for none."""
    how: str
    """`fresh`, `restart` or `continued`."""
    created: int
    claimed: int
    tenant: str
    meta: bytes = field(repr=False)
    """The event that the claim wrote."""
    cancelled: bool
    usage_lost: int | None
    """The first of the attempts before that were lost with their workers, and so was their usage; `None`: none was."""
    chars: int
    """Characters of text that a continued attempt goes on from."""

    @property
    def keys(self) -> Partition:
        return Partition(self.taken.partition)


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended; its log is whole. Deliver what sinks miss, and acknowledge."""

    taken: Taken
    job_id: str
    state: JobState
    code: str
    """Why the claim ended it; empty: it had ended before."""


class Claims:
    """The scripts of a job's life, with this worker's name filled in."""

    def __init__(
        self, redis: Redis, worker: str, settings: WorkerSettings, retention: Retention, limits: JobLimits
    ) -> None:
        self.worker = worker
        self._redis = redis
        self._settings = settings
        self._retention = retention
        self._limits = limits

    async def claim(
        self, taken: Taken, provider: str, *, can_continue: bool, begun: bool = False
    ) -> Claim | Ended | None:
        """Begin an attempt. `None`: there is nothing to run (a stale or a rejected entry), and it is acknowledged.

        :param begun: an attempt on this entry broke off here: it is charged as a failure, and not begun once more.
        """
        if b"id" not in taken.fields and taken.raw is None:
            await reject(
                self._redis, taken, "job: is required: XADD the job as JSON in a field of that name", self._retention
            )
            return None
        if taken.raw is not None and not await adopt(self._redis, taken, self._limits, self._retention):
            return None
        job_id, keys = taken.job_id, Partition(taken.partition)
        with redis_errors():
            answer: Any = await CLAIM.run(
                self._redis,
                [
                    *keys.of_job(job_id),
                    taken.stream,
                    keys.deadlines,
                    keys.expiries,
                    keys.dead(taken.queue),
                ],
                [
                    job_id,
                    taken.entry,
                    self.worker,
                    GROUP,
                    orjson.dumps(provider),
                    int(can_continue),
                    self._settings.max_attempts,
                    int(self._retention.idle_retention * 1000),
                    self._retention.retention,
                    int(begun),
                ],
            )
        match answer[0]:
            case b"run":
                spec = _stored_spec(answer[2])
                return Claim(
                    taken=taken,
                    job_id=job_id,
                    worker=self.worker,
                    attempt=answer[1],
                    spec=spec or JobSpec(model="unknown", prompt="unknown"),
                    understood=spec is not None,
                    failures=answer[3],
                    usage=answer[4],
                    how=answer[5].decode(),
                    created=int(answer[6]),
                    claimed=int(answer[7]),
                    tenant=answer[8].decode(),
                    meta=answer[9],
                    cancelled=answer[10] == b"1",
                    usage_lost=int(answer[11]) if answer[11] else None,
                    chars=answer[12],
                )
            case b"ended":
                return Ended(taken, job_id, answer[1].decode(), answer[2].decode())
            case _:
                return None

    async def finish(
        self,
        claim: Claim,
        first_seq: int,
        events: list[bytes],
        state: JobState,
        record: dict[str, Arg],
        *,
        acknowledge: bool,
        dead: str = "",
        error: bytes = b"",
    ) -> tuple[str, int]:
        """See `finish.lua`. Idempotent: ask again when the answer was lost."""
        keys, job_id = claim.keys, claim.job_id
        args: list[Arg] = [
            job_id,
            claim.attempt,
            self.worker,
            first_seq,
            state,
            int(acknowledge),
            GROUP,
            dead,
            error,
            claim.spec.channel or "",
            self._retention.retention,
            len(events),
            *events,
            *pairs(record),
        ]
        with redis_errors():
            answer: Any = await FINISH.run(
                self._redis,
                [
                    *keys.of_job(job_id),
                    claim.taken.stream,
                    keys.expiries,
                    keys.dead(claim.taken.queue),
                ],
                args,
            )
        return answer[0].decode(), answer[1]

    async def retry(
        self, claim: Claim, first_seq: int, events: list[bytes], wait: float, error: bytes, record: dict[str, Arg]
    ) -> tuple[str, int]:
        """See `retry.lua`. Idempotent.

        :param wait: seconds until the next attempt may begin.
        """
        keys, job_id = claim.keys, claim.job_id
        args: list[Arg] = [
            job_id,
            claim.attempt,
            self.worker,
            first_seq,
            int(wait * 1000),
            GROUP,
            error,
            claim.spec.channel or "",
            len(events),
            *events,
            *pairs(record),
        ]
        with redis_errors():
            answer: Any = await RETRY.run(
                self._redis,
                [
                    *keys.of_job(job_id),
                    claim.taken.stream,
                    keys.delayed(claim.taken.queue),
                ],
                args,
            )
        return answer[0].decode(), answer[1]

    async def release(self, claim: Claim, usage: bytes) -> str:
        """Hand a running job back: another worker takes it at once."""
        keys, queue = claim.keys, claim.taken.queue
        with redis_errors():
            answer: Any = await RELEASE.run(
                self._redis,
                [keys.job(claim.job_id), claim.taken.stream, keys.queue(queue, TAKEOVER)],
                [claim.job_id, claim.attempt, self.worker, GROUP, claim.spec.model, usage],
            )
        return str(answer.decode())

    async def acknowledge(self, taken: Taken, job_id: str, record: dict[str, Arg]) -> None:
        """Take an ended job's entry out of the queue, and note the sinks' outcome."""
        args: list[Arg] = [GROUP, taken.entry, *pairs(record)]
        with redis_errors():
            await ACK.run(self._redis, [Partition(taken.partition).job(job_id), taken.stream], args)


def _stored_spec(stored: bytes) -> JobSpec | None:
    try:
        return JobSpec.model_validate_json(stored)
    except PydanticError:
        return None
