"""What the races share: contestants on connections of their own, how two are let loose, and what must be true after."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import orjson

from deltafan.broker import upkeep
from deltafan.broker.cancel import CancelOutcome, cancel_job
from deltafan.broker.claims import Claim, Claims, Ended
from deltafan.broker.connections import Connections
from deltafan.broker.intake import Intake, Taken
from deltafan.broker.keys import Partition
from deltafan.broker.log import read_page
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import Arg
from deltafan.chaos.audit import STATE_OF, expiry_problems, queue_problems
from deltafan.chaos.oracle import problems_of, transcript_of
from deltafan.errors import ConflictError
from deltafan.events import Done, Error, EventId, FinishReason
from deltafan.job import JobState
from deltafan.settings import JobLimits, Retention, WorkerSettings
from deltafan.wire import encode, parse_event_id

ROUNDS = 1000
AT_ONCE = 40
"""Races that run at the same time: what one does in several steps is then cut into by others."""
A, B = TypeVar("A"), TypeVar("B")


class Contestant:
    """What a worker can do, on connections of its own."""

    def __init__(self, connections: Connections, name: str) -> None:
        self.connections = connections
        self.redis = connections.commands
        self.name = name
        self.claims = Claims(self.redis, name, WorkerSettings(), Retention(), JobLimits())
        self.intake = Intake(connections, name, ["default"], connections.settings.partitions)

    async def take_all(self, count: int = ROUNDS) -> list[Taken]:
        await self.intake.ensure_groups()
        return await self.intake.take(count)

    async def claim(self, taken: Taken) -> Claim | Ended | None:
        return await self.claims.claim(taken, "scripted", can_continue=False)

    async def own(self, count: int = ROUNDS) -> list[Claim]:
        """Run so many of the waiting jobs."""
        claims = await in_turn(self.claim, await self.take_all(count))
        assert all(isinstance(claim, Claim) for claim in claims)
        return claims  # type: ignore[return-value]

    async def finish(self, claim: Claim, state: JobState = "done", reason: FinishReason = "stop") -> str:
        done = encode(claim.job_id, EventId(claim.attempt, 1), Done(reason, text_length=0))
        record: dict[str, Arg] = {"finish_reason": reason}
        return (await self.claims.finish(claim, 1, [done], state, record, acknowledge=True))[0]

    async def retry(self, claim: Claim) -> str:
        error = Error("server_error", "again", retryable=True, will_retry=True)
        data = encode(claim.job_id, EventId(claim.attempt, 1), error)
        return (await self.claims.retry(claim, 1, [data], 3600.0, orjson.dumps({"attempt": 1}), {}))[0]

    async def release(self, claim: Claim) -> str:
        return await self.claims.release(claim, b"")

    async def cancel(self, job_id: str) -> CancelOutcome:
        return await cancel_job(self.redis, job_id, None, Retention())

    async def beat(self) -> None:
        await upkeep.beat(self.redis, self.connections.settings.partitions, self.name, 600.0, {})


async def in_turn(action: Callable[[A], Awaitable[B]], subjects: Sequence[A]) -> list[B]:
    """Do it for each, many at a time."""
    found: list[B] = []
    for start in range(0, len(subjects), AT_ONCE):
        found += await asyncio.gather(*(action(subject) for subject in subjects[start : start + AT_ONCE]))
    return found


async def races(
    subjects: Sequence[A], one: Callable[[A], Awaitable[Any]], other: Callable[[A], Awaitable[Any]], seed: int = 17
) -> list[tuple[Any, Any]]:
    """Let both loose on each subject at once; which of them gets a head start of a few steps is chance."""
    chance = random.Random(seed)

    async def after(steps: int, action: Callable[[A], Awaitable[Any]], subject: A) -> Any:
        for _ in range(steps):
            await asyncio.sleep(0)
        try:
            return await action(subject)
        except ConflictError as error:
            return error

    async def race(subject: A) -> tuple[Any, Any]:
        pair = [after(chance.randrange(6), action, subject) for action in (one, other)]
        return tuple(await asyncio.gather(*pair))  # type: ignore[return-value]

    return await in_turn(race, subjects)


async def enqueue(queue: AsyncQueue, count: int = ROUNDS, **fields: Any) -> list[str]:
    async def one(number: int) -> str:
        return (await queue.submit(model="m", prompt=f"{number}", **fields)).id

    return await in_turn(one, range(count))


def both_happened(was_first: Iterable[bool]) -> int:
    """How often the first of two was; a race that always ends in one way is none."""
    times = Counter(was_first)
    assert len(times) == 2, times
    return times[True]


async def check_ended(queue: AsyncQueue, job_ids: Sequence[str]) -> Counter[str]:
    """Every log is whole and ends with its only `done`; records and dead letters agree; nothing waits. Gives the
    states."""

    async def one(job_id: str) -> str:
        events = [entry.event() for entry in (await read_page(queue.connections.commands, job_id, None)).entries]
        known = [event for event in events if event is not None]
        assert problems_of(known) == [], job_id
        done, status = transcript_of(known).done, await queue.job(job_id).status()
        assert done is not None
        assert status.state == STATE_OF.get(done.finish_reason, "done")
        assert known[-1].id == parse_event_id(status.last_id or "")
        return status.state

    states = await in_turn(one, job_ids)
    letters: list[Any] = []
    for number in range(queue.settings.partitions):
        letters += await queue.connections.commands.xrange(Partition(number).dead("default"))
    failed = [job_id for job_id, state in zip(job_ids, states, strict=True) if state == "failed"]
    assert sorted(fields[b"id"].decode() for _, fields in letters) == sorted(failed)
    assert await queue_problems(queue.connections) == []
    assert await expiry_problems(queue.connections) == []
    return Counter(states)


async def entries(queue: AsyncQueue, stream: str = "normal") -> list[str]:
    rows: list[Any] = []
    for number in range(queue.settings.partitions):
        rows += await queue.connections.commands.xrange(Partition(number).queue("default", stream))
    return [fields[b"id"].decode() for _, fields in rows]
