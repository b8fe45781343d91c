"""Case 6: Redis is killed with kill -9 and comes back with its append-only file, whole or without its tail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deltafan.broker.keys import partition
from deltafan.chaos.followers import Seen
from deltafan.chaos.rig import TEXT, Job, Rig, eventually

LONG = TEXT * 12
FORGETS = pytest.mark.server(appendonly=True)
"""The server writes every command to its file at once, and everysec leaves the rest to the system: a killed process
loses nothing. A machine that loses its power loses the file's tail; here the test cuts it off."""


class File:
    """The server's append-only file."""

    def __init__(self, folder: Path) -> None:
        self._path = next(folder.glob("appendonlydir/*.incr.aof"))
        self._mark = 0

    @classmethod
    async def of(cls, rig: Rig) -> File:
        assert rig.redis is not None
        folder = (await rig.redis.config_get("dir"))["dir"]
        return cls(Path(folder))

    def mark(self) -> None:
        """What is written from now on is the tail."""
        self._mark = self._path.stat().st_size

    def lose_tail(self) -> None:
        assert self._path.stat().st_size > self._mark > 0
        os.truncate(self._path, self._mark)


async def _loses_its_tail(rig: Rig, file: File) -> None:
    await rig.backend.kill()
    file.lose_tail()
    await rig.backend.start()


def _has(events: int) -> Callable[[Seen], bool]:
    return lambda seen: len(seen.events) >= events


def _attempts(job: Job) -> set[int]:
    return {seen.events[-1].id.attempt for seen in job.seen.values() if seen.events[-1].id}


async def _failures(job: Job) -> int:
    return (await job.handle.status()).failures


@pytest.mark.parametrize(
    "_policy",
    [
        pytest.param("always", marks=pytest.mark.server(appendonly=True, extra_args=["--appendfsync", "always"])),
        pytest.param("everysec", marks=pytest.mark.server(appendonly=True, extra_args=["--appendfsync", "everysec"])),
    ],
)
async def test_killed_in_mid_stream_and_started_again_it_has_lost_nothing(rig: Rig, _policy: str) -> None:
    await rig.worker()
    relay = await rig.relay()
    jobs = [await rig.enqueue(LONG, rate=80) for _ in range(4)]
    for job in jobs:
        await job.follow(relay)
    for round_ in (1, 2):
        for job in jobs:
            await job.until(_has(10 * round_))
        await rig.backend.kill()
        await rig.backend.start()
    await rig.check()
    for job in jobs:
        assert _attempts(job) == {1}
        assert len(job.requests) == 1


@FORGETS
async def test_a_lost_tail_of_a_log_is_written_again_from_the_workers_memory(rig: Rig) -> None:
    await rig.worker()
    relay, file = await rig.relay(), await File.of(rig)
    job = await rig.enqueue(LONG, rate=80)
    await job.follow(relay)
    await job.until(_has(5))
    file.mark()
    await job.until(_has(30))
    await _loses_its_tail(rig, file)
    await rig.check()
    assert _attempts(job) == {1}
    assert len(job.requests) == 1


@FORGETS
async def test_a_tail_beyond_the_workers_memory_is_said_again_in_a_new_attempt(rig: Rig) -> None:
    await rig.worker(memory_bytes=4096)
    relay, file = await rig.relay(), await File.of(rig)
    job = await rig.enqueue(TEXT * 24, rate=150)
    await job.follow(relay)
    await job.until(_has(5))
    file.mark()
    await job.until(_has(150))
    await _loses_its_tail(rig, file)
    await rig.check(forgot=True)
    assert _attempts(job) == {12}, "no id of the lost tail comes again"
    assert await _failures(job) == 0


@FORGETS
async def test_a_job_whose_claim_was_lost_runs_again_under_ids_that_nobody_has_seen(rig: Rig) -> None:
    """Its followers have the lost attempt; its worker still runs it, and is refused. The worker's first heartbeat was
    lost as well, and the next one is far: nobody may take the worker for dead, and least of all it itself.
    """
    relay, file = await rig.relay(), await File.of(rig)
    job = await rig.enqueue(LONG, rate=80)
    await job.follow(relay)
    file.mark()
    await rig.worker(lease=20)
    await job.until(_has(20))
    await _loses_its_tail(rig, file)
    await rig.check(forgot=True)
    assert _attempts(job) == {11}
    assert await _failures(job) == 0
    assert len(job.requests) == 2


@FORGETS
async def test_a_job_whose_enqueue_was_lost_is_gone_for_its_worker_and_its_followers(rig: Rig) -> None:
    await rig.worker()
    relay, file = await rig.relay(), await File.of(rig)
    kept = await rig.enqueue(TEXT)
    await kept.follow(relay)
    await kept.ended()
    file.mark()
    lost = await rig.enqueue(LONG, rate=20)
    await lost.follow(relay)
    await lost.until(_has(5))
    await _loses_its_tail(rig, file)
    await lost.ended()
    assert {seen.gone for seen in lost.seen.values()} == {"not_found", "job_gone"}
    assert lost.seen["sse"].told == ["job_gone"]

    async def closed() -> bool:
        return all(request.ended for request in lost.requests)

    await eventually(closed)
    [request] = lost.requests
    assert request.outcome != "finished"
    await rig.check(kept)


@FORGETS
async def test_a_job_whose_end_was_lost_is_run_once_more_and_charged_no_failure(rig: Rig) -> None:
    await rig.worker()
    relay, file = await rig.relay(), await File.of(rig)
    job = await rig.enqueue(LONG, rate=80, max_attempts=1)
    await job.follow(relay)
    await job.until(_has(20))
    file.mark()
    await job.ended()
    await rig.check()
    await _loses_its_tail(rig, file)
    job.seen.clear()  # those have their end
    job.tasks.clear()
    await job.follow(relay)
    await rig.check(forgot=True)
    assert _attempts(job) == {12}
    assert await _failures(job) == 0
    assert len(job.requests) == 2


@FORGETS
@pytest.mark.parametrize("most", [1, 3])
async def test_worker_and_tail_lost_together_leave_no_follower_with_half_an_attempt(rig: Rig, most: int) -> None:
    """With prefill the text would go on from what Redis still has, which is less than what followers have."""
    workers = [await rig.worker(), await rig.worker()]
    relay, file = await rig.relay(), await File.of(rig)
    job = await rig.enqueue(LONG, rate=60, max_attempts=most, on_takeover="continue")
    await job.follow(relay)
    await job.until(_has(5))
    owner = (await job.handle.status()).worker
    [worker] = [each for each in workers if each.worker == owner]
    file.mark()
    await job.until(_has(30))
    await rig.backend.kill()
    worker.kill()
    file.lose_tail()
    await rig.backend.start()
    await rig.check(whole=most > 1, forgot=True)
    assert _attempts(job) == {12}
    assert await _failures(job) == 1
    record = await rig.queue.connections.commands.hget(partition(job.id).job(job.id), "how")
    assert record == (b"restart" if most > 1 else b"fresh")
