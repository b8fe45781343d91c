"""One job's further sinks, each at its own pace.

Each has a runner of its own: while a batch is under way, what arrives is merged; when it has gone, the merged batch
goes. A runner's buffer is bounded: one that overflows is thrown away, and the sink catches up from the log. A sink that
fails is tried again, and never delays the log, the model or another sink.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from deltafan.coalesce import coalesce
from deltafan.events import Event, EventId
from deltafan.sinks.base import JobInfo, Sink, SinkFactory
from deltafan.telemetry.hooks import Hook, Signal

BUFFER = 2048
"""Events that wait for a slow sink. Beyond it they are read from the log again."""
_RETRY_MIN, _RETRY_MAX = 0.1, 5.0
_CLOSE_SECONDS = 5.0
"""How long a sink that has its `done` may take to close."""

CatchUp = Callable[[EventId | None], Awaitable[Sequence[Event]]]
"""Reads what follows an id from the job's log: a page, empty at the end."""


class SinkRunner:
    """Carries one job's events to one sink, from a cursor on, until `done` or until it is stopped."""

    def __init__(
        self, name: str, factory: SinkFactory, job: JobInfo, catch_up: CatchUp, hook: Hook, after: EventId | None
    ) -> None:
        self.name = name
        self.delivered = after
        self.error: str | None = None
        self._factory = factory
        self._job = job
        self._catch_up = catch_up
        self._hook = hook
        self._buffer: deque[Event] = deque()
        self._behind = True  # what came before us is in the log
        self._news = asyncio.Event()
        self._news.set()
        self.complete = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"deltafan-sink-{name}-{job.id}")

    def offer(self, events: Sequence[Event]) -> None:
        """Hand over what was appended to the log. Never blocks."""
        if len(self._buffer) + len(events) > BUFFER:
            self._buffer.clear()
            self._behind = True
        elif not self._behind:
            self._buffer.extend(events)
        self._news.set()

    async def stop(self) -> None:
        if self.complete.is_set():  # it is closing by itself
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        state = "delivered" if self.complete.is_set() else "behind" if self._task.done() else "delivering"
        status: dict[str, Any] = {"state": state, "last_id": str(self.delivered) if self.delivered else None}
        if self.error is not None and state != "delivered":
            status["error"] = self.error
        return status

    async def _run(self) -> None:
        wait = _RETRY_MIN
        sink: Sink | None = None
        try:
            while not self.complete.is_set():
                await self._news.wait()
                batch = await self._next()
                if not batch:
                    continue
                try:
                    sink = sink or await self._factory(self._job)
                    await sink.emit(batch)
                except Exception as error:  # a user's sink may raise anything; the log has the events
                    self._failed(error)
                    self._buffer.clear()
                    self._behind = True
                    self._news.set()
                    await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
                    wait = min(wait * 2, _RETRY_MAX)
                    continue
                wait, self.error = _RETRY_MIN, None
                self.delivered = batch[-1].id
                if batch[-1].type == "done":
                    self.complete.set()
        finally:
            if sink is not None:
                await self._close(sink)

    async def _next(self) -> list[Event]:
        if self._behind:
            self._behind = False
            self._buffer.clear()
            try:
                page = await self._catch_up(self.delivered)
            except Exception as error:
                self._failed(error)
                self._behind = True
                await asyncio.sleep(_RETRY_MAX / 5)
                return []
            if page:
                self._behind = page[-1].type != "done"  # until a page is empty, there may be more
                return list(page)
        batch = [event for event in self._buffer if event.id is not None and self._is_new(event.id)]
        self._buffer.clear()
        if not self._behind:  # it may have overflowed while the log was read
            self._news.clear()
        return list(coalesce(batch))

    def _is_new(self, event_id: EventId) -> bool:
        return self.delivered is None or event_id > self.delivered

    def _failed(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"[:200]
        self._hook(Signal("sink.failed", "warning", {"sink": self.name, "job": self._job.id, "error": self.error}))

    async def _close(self, sink: Sink) -> None:
        try:
            await sink.aclose()
        except Exception as error:
            self._failed(error)


class Fanout:
    """All further sinks of one job."""

    def __init__(self, runners: Sequence[SinkRunner]) -> None:
        self._runners = tuple(runners)

    def __bool__(self) -> bool:
        return bool(self._runners)

    def offer(self, events: Sequence[Event]) -> None:
        for runner in self._runners:
            runner.offer(events)

    async def settle(self, budget: float) -> Mapping[str, dict[str, Any]]:
        """Wait, at most `budget` seconds, until every sink has its `done`; stop those that are behind.

        :return: how each stands, by name.
        """
        waits = [asyncio.create_task(runner.complete.wait()) for runner in self._runners]
        if waits:
            await asyncio.wait(waits, timeout=budget)
        await self.aclose()
        for wait in waits:
            wait.cancel()
        return {runner.name: runner.status() for runner in self._runners}

    async def aclose(self) -> None:
        for runner in self._runners:
            await runner.stop()


def unknown_sinks(names: Sequence[str], registry: Mapping[str, SinkFactory]) -> list[str]:
    return [name for name in names if name not in registry]
