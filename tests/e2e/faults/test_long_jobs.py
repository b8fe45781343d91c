"""Case 14: liveness is the process's, not the job's; and its measure is Redis's clock, not the machine's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deltafan.chaos.rig import QUICK, TEXT, Job, Rig
from deltafan.devserver.provider.text import split_text
from deltafan.events import Meta
from tests.e2e.faults.lives_kit import program

LEASE = float(str(QUICK["lease"]))
LONG = TEXT * 2
INTERVALS = len(split_text(LONG, 4)) - 1
"""Between the chunks in which the provider sends it."""


async def _ran_once(*jobs: Job) -> None:
    for job in jobs:
        status = await job.handle.status()
        assert (status.state, status.attempt, status.failures, len(job.requests)) == ("done", 1, 0, 1)


@pytest.mark.topologies("valkey", "cluster")
async def test_a_job_ten_times_longer_than_the_lease_runs_once(rig: Rig) -> None:
    """With another worker beside its own that looks for lost jobs all the time."""
    await asyncio.gather(rig.worker(), rig.worker())
    job = await rig.enqueue(LONG, rate=INTERVALS / (10.5 * LEASE))
    await job.follow()
    await rig.check()
    await _ran_once(job)
    status = await job.handle.status()
    assert status.ended is not None
    assert status.claimed is not None
    assert status.ended - status.claimed >= 10 * LEASE * 1000


JUMPING = """
import datetime
real, real_ns, now = time.time, time.time_ns, datetime.datetime.now

def jump():
    return SECONDS if os.path.exists(PATH) else 0

class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return now(tz) + datetime.timedelta(seconds=jump())

time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + jump() * 10**9
datetime.datetime = Jumping
"""


@pytest.mark.topologies("valkey", "sentinel")
async def test_a_clock_that_jumps_an_hour_takes_no_job_from_anyone_and_moves_no_deadline(
    rig: Rig, tmp_path: Path
) -> None:
    """One worker's clock jumps forward and the other's back, while each runs two jobs. Then they look after jobs that
    wait: delayed ones, one that may expire, one whose attempt fails.
    """
    jumped = tmp_path / "jumped"
    for seconds in (3600, -3600):
        await rig.worker(command=program(f"SECONDS, PATH = {seconds}, {str(jumped)!r}\n{JUMPING}"), concurrency=2)
    running = [await rig.enqueue(LONG, rate=INTERVALS / (4 * LEASE)) for _ in range(4)]
    for job in running:
        await job.follow()
    await asyncio.gather(*(job.begun() for job in running))
    owners = [(await job.handle.status()).worker for job in running]
    assert {owners.count(program.worker) for program in rig.programs} == {2}
    jumped.touch()
    delayed = await rig.enqueue(delay=LEASE)
    patient = await rig.enqueue(expires_in=60)
    failing = await rig.enqueue(scripted={"fault": "cut=3*1"})
    for job in (delayed, patient, failing):
        await job.follow()
    await rig.check()
    await _ran_once(*running, delayed, patient)
    status = await delayed.handle.status()
    assert status.started is not None
    assert status.started - status.created >= LEASE * 1000
    assert (await failing.handle.status()).attempt == 2
    server = await _redis_ms(rig)
    for job in rig.jobs:
        assert 0 <= (await job.handle.status()).timings["total"] < 600_000
        for meta in (event for event in await job.log() if isinstance(event, Meta)):
            assert abs(server - meta.created) < 600_000


async def _redis_ms(rig: Rig) -> int:
    seconds, _ = await rig.commands.time()
    return int(seconds) * 1000
