"""Case 15: jobs that may be what kills workers run one at a time in each worker."""

from __future__ import annotations

from itertools import pairwise

from deltafan.broker import upkeep
from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.settings import Retention, WorkerSettings
from tests.conftest import StartWorker
from tests.e2e.faults.races_kit import Contestant


async def _suspects(queue: AsyncQueue, count: int) -> list[AsyncJob]:
    """Jobs whose worker was lost under them, and that may fail only once more; they wait for another one."""
    jobs = [await queue.enqueue(model="openai/scripted", prompt="x", max_attempts=2) for _ in range(count)]
    async with Connections(queue.settings) as connections:
        lost = Contestant(connections, "lost")
        await lost.own(count)
        found = await upkeep.reap(lost.redis, 0, "default", WorkerSettings(), Retention())
    assert found.moved == count
    return jobs


async def test_jobs_that_may_kill_their_worker_run_one_at_a_time(queue: AsyncQueue, start_worker: StartWorker) -> None:
    jobs = await _suspects(queue, 3)
    await start_worker(lease=3600.0)
    for job in jobs:
        await job.result(timeout=30)
    ran = sorted([await job.status() for job in jobs], key=lambda status: status.claimed or 0)
    for earlier, later in pairwise(ran):
        assert (later.claimed or 0) >= (earlier.ended or 0)
