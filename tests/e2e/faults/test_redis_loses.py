"""Case 7: Redis loses everything, its consumer groups, what its consumers hold, or a log, while jobs run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio

from deltafan.broker.cluster import beside
from deltafan.broker.keys import GROUP, partition
from deltafan.chaos.followers import Seen
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually
from deltafan.errors import JobNotFound
from deltafan.sse import Decoder
from tests.e2e.faults.redis_kit import Here, calls_in, here
from tests.e2e.faults.topologies_kit import streams

LONG = TEXT * 12


@pytest_asyncio.fixture
async def parts(rig: Rig) -> AsyncIterator[Here]:
    async with here(rig) as opened:
        yield opened


@pytest.fixture
def vigilant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers that look at a silent job's record after a second instead of ten."""
    monkeypatch.setattr("deltafan.broker.hub.AUDIT_INTERVAL", 1.0)


def _has(events: int) -> Callable[[Seen], bool]:
    return lambda seen: len(seen.events) >= events


async def _followed(parts: Here, **fields: Any) -> Job:
    """A running job with a follower of each kind, who have seen some of it."""
    relay, _ = await parts.relay()
    job = await parts.rig.enqueue(fields.pop("text", LONG), **{"rate": 80, **fields})
    await job.follow(cast("Program", relay))
    await job.until(_has(8))
    return job


def _attempts(job: Job) -> set[int]:
    return {seen.events[-1].id.attempt for seen in job.seen.values() if seen.events[-1].id}


# Everything


@pytest.mark.topologies("valkey", "cluster", "sentinel")
@pytest.mark.usefixtures("vigilant")
async def test_flushall_ends_jobs_and_followers_clearly_and_nobody_runs_in_circles(rig: Rig, parts: Here) -> None:
    workers = [await parts.worker(), await parts.worker()]
    relay, _ = await parts.relay()
    idle = await calls_in(rig.backend, 2.0)
    jobs = [
        await rig.enqueue(LONG, rate=40),
        await rig.enqueue(LONG, scripted={"first_token_delay": "60"}),  # a silent model: no append finds it out
        await rig.enqueue(LONG, delay=60),
    ]
    for job in jobs:
        await job.follow(cast("Program", relay))
    await jobs[0].until(_has(5))
    await rig.provider.until(lambda requests: len(requests) == 2)
    await rig.commands.flushall()
    for job in jobs[:2]:
        await job.ended()
        assert {seen.gone for seen in job.seen.values()} == {"not_found", "job_gone"}
        assert job.seen["sse"].told == ["job_gone"]

    async def stopped() -> bool:
        return not any(worker.engine.running for worker in workers) and all(r.ended for r in rig.provider.requests)

    await eventually(stopped)
    assert {record.outcome for record in rig.provider.requests} == {"client_closed"}
    signals = [signal for worker in workers for signal in worker.signals]
    met = [str(s.fields["error"]) for s in signals if s.name in ("redis.unavailable", "redis.refused")]
    assert not [error for error in met if "cannot be reached" not in error]  # which a slow machine may bring about
    gone = [(signal.level, signal.fields["job"]) for signal in signals if signal.name == "job.gone"]
    assert sorted(gone) == sorted(("warning", job.id) for job in jobs[:2])
    async with rig.http.get(f"{relay.url}/v1/jobs/{jobs[0].id}/events") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")
    with pytest.raises(JobNotFound):
        await jobs[0].handle.result()
    after = await calls_in(rig.backend, 2.0)
    assert after < 2 * idle + 50, f"{after} commands in two seconds; {idle} before there was anything to do"
    again = await rig.enqueue(TEXT)
    await again.follow(cast("Program", relay))
    await rig.check(again)


@pytest.mark.usefixtures("vigilant")
async def test_an_apps_own_event_stream_ends_with_an_error_when_redis_has_lost_the_job(rig: Rig, parts: Here) -> None:
    await parts.worker()
    job = await rig.enqueue(LONG, rate=40)
    decoder, frames = Decoder(), []
    async with aclosing(job.handle.sse()) as body:
        async for data in body:
            frames += decoder.feed(data)
            if len(frames) == 5:
                await rig.commands.flushall()
    assert frames[-1].event == "error"
    assert not frames[-1].id or frames[-1].id == frames[-2].id
    assert orjson.loads(frames[-1].data)["code"] == "job_gone"


# The group, and what it knows


def _stream(job: Job) -> str:
    return partition(job.id).queue("default", "normal")


async def _destroyed(rig: Rig, job: Job) -> None:
    for stream in streams(rig.queue.connections):
        await rig.commands.xgroup_destroy(stream, GROUP)


async def _consumer_removed(rig: Rig, job: Job) -> None:
    owner = (await job.handle.status()).worker
    assert owner is not None
    await rig.commands.xgroup_delconsumer(_stream(job), GROUP, owner)


async def _acknowledged(rig: Rig, job: Job) -> None:
    entry = await rig.commands.hget(partition(job.id).job(job.id), "entry")
    assert await rig.commands.xack(_stream(job), GROUP, entry) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("loses", [_destroyed, _consumer_removed, _acknowledged], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("crash", [False, True], ids=["its worker lives", "its worker dies"])
async def test_a_job_that_no_consumer_holds_ends_all_the_same(rig: Rig, parts: Here, loses: Any, crash: bool) -> None:
    workers = [await parts.worker(), await parts.worker()]
    job = await _followed(parts)
    owner = (await job.handle.status()).worker
    [first] = [worker for worker in workers if worker.engine.worker == owner]
    await loses(rig, job)
    if crash:
        await first.vanish()
    later = await rig.enqueue(TEXT)
    await later.follow()
    await rig.check()
    assert _attempts(job) == {2 if crash else 1}
    assert len(job.requests) == (2 if crash else 1)


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_job_whose_entry_a_dead_worker_got_from_a_new_group_stays_with_its_own(rig: Rig, parts: Here) -> None:
    await parts.worker()
    job = await _followed(parts)
    stream, redis = _stream(job), await beside(rig.commands, _stream(job))
    async with redis.pipeline(transaction=True) as pipe:  # or the worker makes the group first
        pipe.xgroup_destroy(stream, GROUP)
        pipe.xgroup_create(stream, GROUP, id="0")
        pipe.xreadgroup(GROUP, "dead-before-it-looked", {stream: ">"})
        *_, read = await pipe.execute()
    assert read
    await rig.check()
    assert _attempts(job) == {1}


# A log


async def _deleted(rig: Rig, job: Job) -> None:
    assert await rig.commands.delete(partition(job.id).log(job.id)) == 1


async def _expired(rig: Rig, job: Job) -> None:
    await rig.commands.pexpire(partition(job.id).log(job.id), 1)


@pytest.mark.topologies("valkey", "cluster", "sentinel")
@pytest.mark.parametrize("loses", [_deleted, _expired], ids=lambda f: f.__name__.strip("_"))
async def test_a_log_lost_under_a_running_job_is_written_anew_from_memory(rig: Rig, parts: Here, loses: Any) -> None:
    await parts.worker()
    job = await _followed(parts)
    await loses(rig, job)
    await rig.check()
    assert _attempts(job) == {1}
    assert len(job.requests) == 1


async def test_a_log_lost_beyond_the_workers_memory_is_said_again_in_a_new_attempt(rig: Rig, parts: Here) -> None:
    await parts.worker(memory_bytes=4096)
    job = await _followed(parts, text=TEXT * 24)
    await job.until(_has(60))
    await _deleted(rig, job)
    await rig.check(forgot=True)
    assert _attempts(job) == {2}
    assert (await job.handle.status()).failures == 0


@pytest.mark.parametrize("most", [1, 3])
async def test_a_log_lost_with_its_worker_leaves_no_follower_without_an_end(rig: Rig, parts: Here, most: int) -> None:
    first = await parts.worker()
    job = await _followed(parts, max_attempts=most, on_takeover="continue")
    await first.vanish()
    await _deleted(rig, job)
    await parts.worker()
    await rig.check(whole=most > 1, forgot=True)
    assert _attempts(job) == {2}
    assert (await job.handle.status()).state == ("done" if most > 1 else "failed")
