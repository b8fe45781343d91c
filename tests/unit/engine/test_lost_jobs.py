"""A job that ends because its worker was lost is named in the log of the worker that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script, Text, running
from deltafan.events import TextDelta
from deltafan.telemetry.hooks import Signal
from tests.conftest import StartWorker

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


class Told:
    """What a worker has said."""

    def __init__(self) -> None:
        self._signals: list[Signal] = []
        self._news = asyncio.Event()

    def __call__(self, signal: Signal) -> None:
        self._signals.append(signal)
        self._news.set()

    def named(self, name: str) -> list[Signal]:
        return [signal for signal in self._signals if signal.name == name]

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not check():
                self._news.clear()
                await self._news.wait()


async def test_a_lost_workers_jobs_are_named_where_they_end(queue: AsyncQueue, start_worker: StartWorker) -> None:
    """One by its takeover, one by the reaper because it was its last attempt, one by the reaper because of a cancel."""
    told = Told()
    async with running(Script(source=Text(TEXT), rate=20)) as paced:
        first = await start_worker(paced)
        wanted = ({"on_takeover": "fail"}, {"max_attempts": 1}, {"max_attempts": 1})
        jobs = [await queue.enqueue(model="m", prompt="x", **fields) for fields in wanted]
        for job in jobs:
            async for event in job.events():
                if isinstance(event, TextDelta):
                    break
        await first.vanish()
        await jobs[2].cancel()
        second = await start_worker(paced, services={"hook": told})
        await told.until(lambda: len(told.named("job.ended")) == 3)
    ended = {
        signal.fields["job"]: (signal.fields["state"], signal.fields["code"], signal.fields["worker"])
        for signal in told.named("job.ended")
    }
    by = second.engine.worker
    assert ended == {
        jobs[0].id: ("failed", "worker_lost", by),
        jobs[1].id: ("failed", "worker_lost", by),
        jobs[2].id: ("cancelled", "cancelled", by),
    }
    (reaped,) = told.named("jobs.reaped")
    assert (reaped.fields["lost"], reaped.fields["moved"], reaped.fields["ended"]) == ([first.engine.worker], 1, 2)
    assert (reaped.fields["worker"], reaped.level) == (by, "warning")
