"""One job's further sinks, each at its own pace.

Each has a runner of its own: while a batch is under way, what arrives is merged; when it has gone, the merged batch
goes. A runner's buffer is bounded: one that overflows is thrown away, and the sink catches up from the log. A sink that
fails is tried again, and never delays the log, the model or another sink. What a sink refuses for good is left out.

A batch that may have arrived is sent again just as it was, and so is what an earlier worker may have sent: merged anew,
it could overlap with what a receiver has, which drops ids that it has seen and cannot cut an event in two.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deltafan.coalesce import coalesce
from deltafan.events import Event, EventId
from deltafan.sinks.base import JobInfo, Sink, SinkFactory, Undeliverable
from deltafan.telemetry.hooks import Hook, Signal

BUFFER = 2048
"""Events that wait for a slow sink. Beyond it they are read from the log again."""
_RETRY_MIN, _RETRY_MAX = 0.1, 5.0
_CLOSE_SECONDS = 5.0
"""How long a sink that has its `done` may take to close."""

CatchUp = Callable[[EventId | None], Awaitable[Sequence[Event]]]
"""Reads what follows an id from the job's log: a page, empty at the end."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a sink begins in the log."""

    after: EventId | None = None
    """It begins with what follows."""
    maybe_sent: EventId | None = None
    """Up to here an earlier worker may have sent events: they are not merged."""


FROM_THE_START: Final = Start()


class SinkRunner:
    """Carries one job's events to one sink, until `done` or until it is stopped."""

    def __init__(
        self,
        name: str,
        factory: SinkFactory,
        job: JobInfo,
        catch_up: CatchUp,
        hook: Hook,
        start: Start = FROM_THE_START,
    ) -> None:
        self.name = name
        self.delivered: EventId | None = None
        self._start = start
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
        self._awaited: EventId | None = None
        self._reached = asyncio.Event()
        self._told: str | None = None  # the error that was last told of
        self._refused = 0
        self._given_up = False
        self._deadline: float | None = None  # by the loop's clock: the job has ended, and waits no longer than this
        self._settling = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"deltafan-sink-{name}-{job.id}")

    def offer(self, events: Sequence[Event]) -> None:
        """Hand over what was appended to the log. Never blocks."""
        if len(self._buffer) + len(events) > BUFFER:
            self._buffer.clear()
            self._behind = True
        elif not self._behind:
            self._buffer.extend(events)
        self._news.set()

    async def settle(self, last: EventId, budget: float) -> None:
        """Wait until the sink has the event `last`, at most `budget` seconds, or until it is clear that it will not."""
        self._awaited = last
        self._arrived()
        self._deadline = asyncio.get_running_loop().time() + budget
        self._settling.set()
        reached = asyncio.create_task(self._reached.wait())
        try:
            await asyncio.wait({reached, self._task}, timeout=budget, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()

    async def stop(self) -> None:
        if self.complete.is_set():  # it is closing by itself
            await asyncio.wait({self._task}, timeout=_CLOSE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"state": self._state(), "last_id": str(self.delivered) if self.delivered else None}
        if self._refused:
            status["refused"] = self._refused
        if self.error is not None and status["state"] != "delivered":
            status["error"] = self.error
        elif status["state"] == "behind":
            status["error"] = "it did not take everything in time"
        return status

    def _state(self) -> str:
        if self._given_up:
            return "failed"
        if self.complete.is_set():
            return "incomplete" if self._refused else "delivered"
        return "behind" if self._task.done() else "delivering"

    async def _run(self) -> None:
        wait = _RETRY_MIN
        sink: Sink | None = None
        batch: list[Event] = []
        try:
            while not self.complete.is_set():
                if not batch:
                    await self._news.wait()
                    batch = await self._next()
                    continue
                try:
                    sink = sink or await self._factory(self._job)
                    await sink.emit(batch)
                    self._recovered()
                except Undeliverable as error:
                    self._failed(error)
                    self._refused += 1
                    if error.final:
                        self._given_up = True
                        return
                except Exception as error:  # a user's sink may raise anything; the log has the events
                    self._failed(error)
                    jittered = random.uniform(wait / 2, wait)  # noqa: S311 - jitter, not a secret
                    if not await self._pause(max(jittered, getattr(error, "retry_after", 0.0))):
                        return
                    wait = min(wait * 2, _RETRY_MAX)
                    continue
                wait = _RETRY_MIN
                self.delivered = batch[-1].id
                if batch[-1].type == "done":
                    self.complete.set()
                self._arrived()
                batch = []
        finally:
            if sink is not None:
                await self._close(sink)

    def _arrived(self) -> None:
        if self._awaited is not None and self.delivered is not None and self.delivered >= self._awaited:
            self._reached.set()

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next try. False: the job has ended, and would not wait for that try."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        if self._deadline is None:
            try:
                async with asyncio.timeout_at(until):
                    await self._settling.wait()
            except TimeoutError:
                return True
        if self._deadline is not None and until > self._deadline:
            return False
        await asyncio.sleep(until - clock())
        return True

    async def _next(self) -> list[Event]:
        if self._behind:
            self._behind = False
            self._buffer.clear()
            try:
                page = await self._catch_up(self.delivered or self._start.after)
            except Exception as error:
                self._failed(error)
                self._behind = True
                await asyncio.sleep(_RETRY_MAX / 5)
                return []
            if page:
                self._behind = page[-1].type != "done"  # until a page is empty, there may be more
                return self._merged(page)
        batch = [event for event in self._buffer if event.id is not None and self._is_new(event.id)]
        self._buffer.clear()
        if not self._behind:  # it may have overflowed while the log was read
            self._news.clear()
        return self._merged(batch)

    def _merged(self, events: Sequence[Event]) -> list[Event]:
        sent = self._start.maybe_sent
        again = [event for event in events if sent is not None and event.id is not None and event.id <= sent]
        return [*again, *coalesce(events[len(again) :])]

    def _is_new(self, event_id: EventId) -> bool:
        seen = self.delivered or self._start.after
        return seen is None or event_id > seen

    def _failed(self, error: Exception) -> None:
        """Told once, however often it is tried again."""
        self.error = f"{type(error).__name__}: {error}"[:300]
        if self.error != self._told:
            self._told = self.error
            self._hook(Signal("sink.failed", "warning", {"sink": self.name, "job": self._job.id, "error": self.error}))

    def _recovered(self) -> None:
        if self._refused:
            return
        if self._told is not None:
            self._told = None
            self._hook(Signal("sink.recovered", "info", {"sink": self.name, "job": self._job.id}))
        self.error = None

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

    def status(self) -> dict[str, dict[str, Any]]:
        """How each stands now, by name."""
        return {runner.name: runner.status() for runner in self._runners}

    async def settle(self, last: EventId, budget: float) -> Mapping[str, dict[str, Any]]:
        """Wait, at most `budget` seconds, until every sink has the event `last`; stop those that are behind.

        :return: how each stands, by name.
        """
        await asyncio.gather(*(runner.settle(last, budget) for runner in self._runners))
        await self.aclose()
        return self.status()

    async def aclose(self) -> None:
        for runner in self._runners:
            await runner.stop()


def unknown_sinks(names: Sequence[str], registry: Mapping[str, SinkFactory]) -> list[str]:
    return [name for name in names if name not in registry]
