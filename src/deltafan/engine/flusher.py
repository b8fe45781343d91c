"""One writer for all jobs of a process: one pipelined round trip for every job that has something to say.

On a cluster there is one a partition, because a node that is away must not hold up what others would take.

It clocks itself. The first event goes at once; while a round trip is under way, what arrives is merged; when the
answers are there, the merged batches go. An outage of Redis is waited out: what was in flight is sent again, and the
script answers `duplicate` for what had been applied before the reply was lost.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import is_transient, redis_errors
from deltafan.broker.scripts import Call, run_all
from deltafan.engine.joblog import JobLog
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry.hooks import Hook, Signal
from deltafan.telemetry.outage import Outage

MAX_CALLS = 512
"""Appends in one pipeline."""
_RETRY_MIN, _RETRY_MAX = 0.05, 2.0


@dataclass(slots=True)
class _Lane:
    """Jobs that share their round trips."""

    dirty: dict[JobLog, None] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] = field(init=False)


class Flusher:
    """Open it with `async with`; it must outlive the jobs that write through it."""

    def __init__(self, appends: Redis, hook: Hook, outage: Outage) -> None:
        self._redis = appends
        self._hook = hook
        self._outage = outage
        self._apart = isinstance(appends, ClusterRedis)
        self._lanes: dict[int, _Lane] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        for lane in self._lanes.values():
            lane.task.cancel()
        await asyncio.gather(*(lane.task for lane in self._lanes.values()), return_exceptions=True)

    def wake(self, log: JobLog) -> None:
        if self._closed:
            return
        number = log.claim.taken.partition if self._apart else 0
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = _Lane()
            lane.task = asyncio.create_task(self._run(lane), name="deltafan-flusher")
        lane.dirty[log] = None
        lane.news.set()

    async def _run(self, lane: _Lane) -> None:
        while True:
            await lane.news.wait()
            logs = list(lane.dirty)[:MAX_CALLS]
            for log in logs:
                del lane.dirty[log]
            if not lane.dirty:
                lane.news.clear()
            now = asyncio.get_running_loop().time()
            batch = [(log, call) for log in logs if (call := self._next_call(log, now)) is not None]
            wait = _RETRY_MIN
            while batch:
                batch = await self._send(batch, wait)
                wait = min(wait * 2, _RETRY_MAX)

    def _next_call(self, log: JobLog, now: float) -> Call | None:
        try:
            return log.next_call(now)
        except Exception as error:  # it cannot be encoded
            self._failed(log, error)
            return None

    async def _send(self, batch: list[tuple[JobLog, Call]], wait: float) -> list[tuple[JobLog, Call]]:
        """One round trip. Gives what is to be sent next: backfills, and calls that failed in a way that may pass.

        :param wait: seconds, at the most, before what failed may be sent again.
        """
        answers = await self._answers(batch)
        now = asyncio.get_running_loop().time()
        following: list[tuple[JobLog, Call]] = []
        waiting: list[str] = []
        for (log, call), answer in zip(batch, answers, strict=True):
            if not isinstance(answer, BaseException):
                again = log.answered(answer, now)
                if again is not None:
                    following.append((log, again))
            elif not (is_transient(answer) or _forbidden(answer)):
                self._failed(log, answer)
            elif not log.closed:
                following.append((log, call))
                waiting.append(log.claim.job_id)
                failure = _translated(answer)
        if not waiting:
            self._outage.went_well(self._activity(batch))
            return following
        self._outage.failed(self._activity(batch), failure, waiting)
        await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
        return following

    async def _answers(self, batch: list[tuple[JobLog, Call]]) -> list[Any]:
        """The answers, after as many tries as it takes to reach Redis."""
        wait = _RETRY_MIN
        while True:
            try:
                with redis_errors():
                    return await run_all(self._redis, [call for _, call in batch])
            except (BrokerUnavailable, ConfigurationError) as error:  # an operator may mend either while we wait
                self._outage.failed(self._activity(batch), error, [log.claim.job_id for log, _ in batch])
                await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, _RETRY_MAX)

    def _activity(self, batch: list[tuple[JobLog, Call]]) -> str:
        return f"append to {batch[0][0].claim.taken.partition}" if self._apart else "append"

    def _failed(self, log: JobLog, error: BaseException) -> None:
        """What can never be written ends its own job: every other one writes through this task, too."""
        why = f"{type(error).__name__}: {error}"  # redis-py's `repr` does not say what was refused
        self._hook(Signal("append.failed", "error", {"error": why[:200], "job": log.claim.job_id}))
        log.refused(error)


def _forbidden(error: BaseException) -> bool:
    """Whether an ACL forbids scripts, to all jobs alike; an operator may mend it while we wait. What it forbids inside
    of one (to publish on a job's own channel, say) is that job's trouble, and must not hold up the others.
    """
    return isinstance(error, NoPermissionError) and "in script" not in str(error)


def _translated(error: BaseException) -> BaseException:
    """An error that stood in an answer's place, as an error of ours."""
    try:
        with redis_errors():
            raise error
    except BaseException as ours:
        return ours
