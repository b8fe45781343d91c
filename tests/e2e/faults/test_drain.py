"""Case 4: a worker with 200 streams is told to stop. Its streams end, or go on elsewhere at once; nobody is blamed."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from deltafan.broker.keys import partition
from deltafan.broker.scripts import CLAIM
from deltafan.chaos.followers import by_client, by_sse
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually

STREAMS, OVER_SSE = 200, 20
LEASE = 60.0
"""No job may wait for a lease here: one that did would not end within the test's time."""
LARGE = {"chunk_size": "16"}
"""Few chunks a stream: there are many streams, and the machine may be busy."""
STUCK = {**LARGE, "fault": "stall=2*1"}
"""A model that falls silent after two tokens, when it is asked for the first time: no stream can finish there."""


async def streaming(rig: Rig, relay: Program, **fields: Any) -> list[Job]:
    """All streams under way, each with a follower that has had a token of it; some have one over SSE as well."""
    jobs = await asyncio.gather(*(rig.enqueue(TEXT * 2, **fields) for _ in range(STREAMS)))
    for place, job in enumerate(jobs):
        job.start("client", by_client(rig.queue, job.id))
        if place < OVER_SSE:
            job.start("sse", by_sse(rig.http, [relay.url], job.id))
    await asyncio.gather(*(job.begun() for job in jobs))
    return list(jobs)


async def no_failures(jobs: list[Job], attempts: set[int]) -> None:
    for job in jobs:
        status = await job.handle.status()
        assert (status.state, status.failures, status.attempt_errors) == ("done", 0, []), status
        assert status.attempt in attempts


async def test_sigterm_with_200_streams_lets_all_of_them_finish_where_they_are(rig: Rig) -> None:
    first, relay = await rig.worker(lease=LEASE, drain=50.0, concurrency=STREAMS), await rig.relay()
    jobs = await streaming(rig, relay, rate=3, scripted=LARGE)
    await rig.worker(lease=LEASE, concurrency=STREAMS)
    first.terminate()
    late = await rig.enqueue(TEXT)
    late.start("client", by_client(rig.queue, late.id))
    assert await first.ended() == 0
    await rig.check()
    await no_failures(jobs, {1})
    await no_failures([late], {1, 2})  # one that it had just taken, it hands over


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_sigterm_with_200_streams_that_do_not_finish_in_time_has_them_go_on_elsewhere_at_once(rig: Rig) -> None:
    first, relay = await rig.worker(lease=LEASE, drain=0.5, concurrency=STREAMS), await rig.relay()
    jobs = await streaming(rig, relay, scripted=STUCK)
    await rig.worker(lease=LEASE, concurrency=STREAMS)
    first.terminate()
    assert await first.ended() == 0
    await rig.check()
    await no_failures(jobs, {2})


async def test_sigterm_twice_hands_everything_over_at_once_and_nothing_is_lost(rig: Rig) -> None:
    """The second signal comes when the first has been heeded; jobs that are enqueued in between go elsewhere."""
    first, relay = await rig.worker(lease=LEASE, drain=600.0, concurrency=STREAMS), await rig.relay()
    jobs = await streaming(rig, relay, scripted=STUCK)
    first.terminate()
    await eventually(lambda: _says(first, "worker.draining"))
    await rig.worker(lease=LEASE, concurrency=STREAMS)
    waiting = [await rig.enqueue(TEXT) for _ in range(10)]
    for job in waiting:
        job.start("client", by_client(rig.queue, job.id))
    await asyncio.gather(*(job.ended() for job in waiting))
    assert {(await job.handle.status()).state for job in jobs} == {"running"}
    first.terminate()
    assert await first.ended() == 0
    await rig.check()
    await no_failures(jobs, {2})
    await no_failures(waiting, {1})


async def test_sigterm_in_the_middle_of_claims_loses_none_of_them_though_a_reply_is_lost(rig: Rig) -> None:
    first = await rig.worker(lease=LEASE, drain=0.2, concurrency=20)
    warm = await rig.enqueue(TEXT)  # Redis knows the scripts by now
    await warm.follow()
    await warm.ended()

    def claims(data: bytes) -> bool:
        if CLAIM.single.sha.encode() not in data:
            return False
        first.terminate()
        return True

    assert first.redis is not None
    first.redis.cut_after_request(claims)
    jobs = [await rig.enqueue(TEXT, rate=50) for _ in range(20)]
    for job in jobs:
        await job.follow()
    await first.redis.was_cut.wait()
    await rig.worker(lease=LEASE, concurrency=20)
    assert await first.ended() == 0
    await rig.check()
    await no_failures(jobs, {1, 2})


async def test_ctrl_c_drains_as_sigterm_does_and_ends_with_130(rig: Rig) -> None:
    first = await rig.worker(lease=LEASE, drain=50.0)
    job = await rig.enqueue(TEXT, rate=30)
    await job.follow()
    await job.begun()
    first.child.signal(signal.SIGINT)
    assert await first.ended() == 130
    await rig.check()
    await no_failures([job], {1})
    assert rig.redis is not None
    assert not await rig.redis.exists(partition(job.id).worker(first.worker))


async def _says(program: Program, what: str) -> bool:
    return what in program.logged()
