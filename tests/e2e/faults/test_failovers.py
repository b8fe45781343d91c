"""Case 6 where Redis is several servers: a primary is killed, or hands over, or a slot with jobs moves to another one,
in the middle of streams. With a worker killed beside it, too.
"""

from __future__ import annotations

import asyncio

import pytest

from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig
from deltafan.chaos.servers import fail_over
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.sentinel import EmbeddedSentinel
from deltafan.job import partition_of
from tests.e2e.faults.lives_kit import attempt_begun

LONG = TEXT * 12
JOBS = 8


async def _streaming(rig: Rig, relay: Program) -> list[Job]:
    """Jobs in all partitions, or nearly, each with followers of every kind who have had some of it."""
    jobs = [await rig.enqueue(LONG, rate=50) for _ in range(JOBS)]
    for job in jobs:
        await job.follow(relay)
    await asyncio.gather(*(job.begun(8) for job in jobs))
    return jobs


async def _kill_primary(rig: Rig, job: Job) -> None:
    """SIGKILL of the server that has a job; returns when its replica has taken its place."""
    backend = rig.backend
    if isinstance(backend, EmbeddedSentinel):
        await backend.replaced(await backend.kill_primary())
        return
    assert isinstance(backend, EmbeddedCluster)
    number = partition_of(job.id)
    victim = await backend.owner_of(number)
    await backend.kill(victim)
    async with asyncio.timeout(30):
        while await backend.owner_of(number) == victim:
            await asyncio.sleep(0.05)


async def _ran_once(*jobs: Job) -> None:
    for job in jobs:
        status = await job.handle.status()
        assert (status.state, status.attempt, status.failures, len(job.requests)) == ("done", 1, 0, 1)


@pytest.mark.topologies("cluster", "sentinel")
async def test_a_primary_killed_in_mid_stream_leaves_every_follower_whole_and_no_job_is_run_again(rig: Rig) -> None:
    """What its replica had not got is written again from the worker's memory."""
    await rig.worker(lease=20)
    relay = await rig.relay()
    jobs = await _streaming(rig, relay)
    await _kill_primary(rig, jobs[0])
    await rig.check()
    await _ran_once(*jobs)
    later = await rig.enqueue()
    await later.follow(relay)
    await rig.check()


@pytest.mark.topologies("cluster", "sentinel")
async def test_a_primary_that_hands_over_in_mid_stream_leaves_every_follower_whole_and_no_job_is_run_again(
    rig: Rig,
) -> None:
    await rig.worker(lease=20)
    relay = await rig.relay()
    jobs = await _streaming(rig, relay)
    await fail_over(rig.backend, partition_of(jobs[0].id))
    await rig.check()
    await _ran_once(*jobs)


@pytest.mark.topologies("cluster")
async def test_a_slot_that_moves_there_and_back_in_mid_stream_leaves_every_follower_whole_and_no_job_is_run_again(
    rig: Rig,
) -> None:
    await rig.worker(lease=20)
    relay = await rig.relay()
    jobs = await _streaming(rig, relay)
    slot = rig.backend.slot(partition_of(jobs[0].id))
    home = await rig.backend.owner(slot)
    [other, *_] = {await rig.backend.owner(place) for place in (0, 8000, 16000)} - {home}
    for to in (other, home):
        await rig.backend.migrate(slot, to)
    await rig.check()
    await _ran_once(*jobs)


@pytest.mark.topologies("cluster", "sentinel")
async def test_a_worker_killed_together_with_a_primary_has_its_jobs_ended_by_another(rig: Rig) -> None:
    worker, relay = await rig.worker(lease=3), await rig.relay()
    jobs = await _streaming(rig, relay)
    worker.kill()
    await rig.worker(lease=3)
    await _kill_primary(rig, jobs[0])
    await asyncio.gather(*(attempt_begun(job, 2) for job in jobs))
    # Followers may have seen the first attempt's end, which the replica had not got: nobody is left who has it.
    await rig.check(forgot=True)
    for job in jobs:
        status = await job.handle.status()
        assert status.state == "done"
        assert status.attempt in (2, 12), "ids that may have been lost are left out"
