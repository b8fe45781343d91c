"""How long a follower waits after its worker is killed with SIGKILL, until another has taken the job over."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time

from deltafan.broker.queue import AsyncQueue
from deltafan.events import Meta, TextDelta
from deltafan.settings import WorkerSettings
from tests.bench.parts import parts
from tests.bench.report import Row

ROUNDS = 5


async def measure() -> list[Row]:
    waits: list[float] = []
    lease, reap = WorkerSettings().lease, WorkerSettings().reap_interval
    for _ in range(ROUNDS):
        async with parts(rate=20) as running, AsyncQueue(running.redis_url) as queue:
            first, _ = await running.child("worker")
            job = await queue.enqueue(model="m", prompt="x")
            killed = 0.0
            events = job.events()
            async for event in events:
                if isinstance(event, TextDelta) and not killed:
                    await running.child("worker")
                    os.kill(first.pid, signal.SIGKILL)
                    killed = time.perf_counter()
                elif isinstance(event, Meta) and event.attempt == 2:
                    waits.append(time.perf_counter() - killed)
                    break
            await events.aclose()
            await job.cancel()
            await asyncio.sleep(0)
    how = f"{ROUNDS} kills; promised: lease {lease:g} s + reap interval {reap:g} s"
    return [
        Row("takeover after kill -9, median", statistics.median(waits), "s", None, how),
        Row("takeover after kill -9, worst", max(waits), "s", None, how),
    ]
