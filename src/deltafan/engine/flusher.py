"""One writer for all jobs of a process: one pipelined round trip for every job that has something to say.

It clocks itself. The first event goes at once; while a round trip is under way, what arrives is merged; when the
answers are there, the merged batches go. An outage of Redis is waited out: what was in flight is sent again, and the
script answers `duplicate` for what had been applied before the reply was lost.
"""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis

from deltafan.broker.connections import is_transient, redis_errors
from deltafan.broker.scripts import Call, run_all
from deltafan.engine.joblog import JobLog
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry.hooks import Hook, Signal

MAX_CALLS = 512
"""Appends in one pipeline."""
_RETRY_MIN, _RETRY_MAX = 0.05, 2.0


class Flusher:
    """Open it with `async with`; it must outlive the jobs that write through it."""

    def __init__(self, appends: Redis, hook: Hook) -> None:
        self._redis = appends
        self._hook = hook
        self._dirty: dict[JobLog, None] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="deltafan-flusher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self, log: JobLog) -> None:
        self._dirty[log] = None
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            logs = list(self._dirty)[:MAX_CALLS]
            for log in logs:
                del self._dirty[log]
            if not self._dirty:
                self._news.clear()
            now = asyncio.get_running_loop().time()
            batch = [(log, call) for log in logs if (call := self._next_call(log, now)) is not None]
            while batch:
                batch = await self._send(batch)

    def _next_call(self, log: JobLog, now: float) -> Call | None:
        """What cannot be encoded ends its own job: every other one writes through this task, too."""
        try:
            return log.next_call(now)
        except Exception as error:
            self._hook(Signal("append.failed", "error", {"error": repr(error)[:200], "job": log.claim.job_id}))
            log.refused(error)
            return None

    async def _send(self, batch: list[tuple[JobLog, Call]]) -> list[tuple[JobLog, Call]]:
        """One round trip. Gives what is to be sent next: backfills, and calls that failed in a way that may pass."""
        answers = await self._answers([call for _, call in batch])
        now = asyncio.get_running_loop().time()
        following: list[tuple[JobLog, Call]] = []
        failed: BaseException | None = None
        for (log, call), answer in zip(batch, answers, strict=True):
            if isinstance(answer, BaseException):
                failed = answer
                if is_transient(answer):
                    if not log.closed:
                        following.append((log, call))
                else:
                    log.refused(answer)
                continue
            again = log.answered(answer, now)
            if again is not None:
                following.append((log, again))
        if failed is not None:
            self._hook(Signal("append.failed", "warning", {"error": str(failed)[:200], "jobs": len(following)}))
            if following:
                await asyncio.sleep(random.uniform(_RETRY_MIN, _RETRY_MIN * 4))  # noqa: S311 - jitter, not a secret
        return following

    async def _answers(self, calls: list[Call]) -> list[Any]:
        """The answers, after as many tries as it takes to reach Redis."""
        wait = _RETRY_MIN
        while True:
            try:
                with redis_errors():
                    return await run_all(self._redis, calls)
            except (BrokerUnavailable, ConfigurationError) as error:  # an operator may mend either while we wait
                self._hook(Signal("append.waiting", "warning", {"error": str(error)[:200], "jobs": len(calls)}))
                await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, _RETRY_MAX)
