"""Several partitions on one server: jobs spread, and everything that is done for one is done for all."""

from __future__ import annotations

import asyncio

import pytest

from deltafan.broker.intake import Intake
from deltafan.broker.keys import Partition
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script, Text, running
from deltafan.events import Event, Meta
from deltafan.job import partition_of
from deltafan.settings import RedisSettings
from tests.conftest import StartWorker
from tests.oracle import check_whole

PARTITIONS = 3


@pytest.fixture
def redis_settings(redis_url: str) -> RedisSettings:
    return RedisSettings(url=redis_url, partitions=PARTITIONS, probe_interval=2.0)


async def _all(queue: AsyncQueue, job_id: str) -> list[Event]:
    return [event async for event in queue.job(job_id).events()]


async def _spread(queue: AsyncQueue, each: int = 3, **fields: object) -> dict[int, list[str]]:
    """Jobs until every partition has at least `each`."""
    found: dict[int, list[str]] = {number: [] for number in range(PARTITIONS)}
    while min(map(len, found.values())) < each:
        job = await queue.enqueue(model="m", prompt="x", **fields)
        found[partition_of(job.id)].append(job.id)
    return found


async def test_jobs_of_all_partitions_are_run_and_listed(queue: AsyncQueue, start_worker: StartWorker) -> None:
    jobs = await _spread(queue)
    everyone = [job_id for ids in jobs.values() for job_id in ids]
    await start_worker()
    for job_id in everyone:
        check_whole(await _all(queue, job_id))
    seen: list[str] = []
    page = await queue.jobs(limit=2)
    while True:
        seen += [status.id for status in page.jobs]
        if page.cursor is None:
            break
        page = await queue.jobs(limit=2, cursor=page.cursor)
    assert sorted(seen) == sorted(everyone)
    assert len(set(seen)) == len(seen)
    assert {status.state for status in (await queue.jobs(limit=500)).jobs} == {"done"}
    for number in range(PARTITIONS):
        for stream in Partition(number).queues("default"):
            assert await queue.connections.commands.xlen(stream) == 0


async def test_waiting_and_running_jobs_are_cancelled_in_every_partition(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    waiting = await _spread(queue, each=1, delay=60)
    for ids in waiting.values():
        assert (await queue.job(ids[0]).cancel()).state == "cancelled"
    async with running(Script(source=Text("word " * 2000), rate=50)) as slow:
        await start_worker(slow)
        jobs = await _spread(queue, each=1)
        count = sum(map(len, jobs.values()))
        await slow.until(lambda requests: len(requests) == count and all(r.text_length for r in requests))
        for ids in jobs.values():
            for job_id in ids:
                assert (await queue.job(job_id).cancel()).state == "cancelling"
                check_whole(await _all(queue, job_id))
        await slow.until(lambda requests: all(request.client_closed for request in requests))


async def test_delayed_and_expiring_jobs_of_every_partition_are_looked_after(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    delayed = await _spread(queue, each=1, delay=0.05)
    expiring = await _spread(queue, each=1, delay=60, expires_in=0.05)
    await start_worker()
    for ids in delayed.values():
        for job_id in ids:
            check_whole(await _all(queue, job_id))
    for ids in expiring.values():
        transcript = check_whole(await _all(queue, ids[0]))
        assert transcript.done is not None
        assert transcript.done.finish_reason == "expired"


async def test_a_lost_workers_jobs_are_taken_over_in_every_partition(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    text = "word " * 40
    async with running(Script(source=Text(text), rate=60)) as slow:
        lost = await start_worker(slow, lease=1)
        jobs = await _spread(queue, each=1)
        everyone = [job_id for ids in jobs.values() for job_id in ids]
        await slow.until(lambda requests: len(requests) == len(everyone) and all(r.text_length for r in requests))
        await lost.vanish()
        await start_worker(slow, lease=5)
        for events in await asyncio.gather(*(_all(queue, job_id) for job_id in everyone)):
            check_whole(events, text)
            assert [event.attempt for event in events if isinstance(event, Meta)] == [1, 2]


async def test_an_idempotency_key_finds_its_partition(queue: AsyncQueue) -> None:
    for n in range(10):
        first = await queue.enqueue(model="m", prompt="x", idempotency_key=f"k{n}")
        again = await queue.submit(model="m", prompt="x", idempotency_key=f"k{n}")
        assert (again.id, again.created) == (first.id, False)


async def test_a_full_partition_does_not_keep_the_others_waiting(queue: AsyncQueue) -> None:
    jobs = await _spread(queue, each=4)
    intake = Intake(queue.connections, "w1", ["default"], PARTITIONS)
    await intake.ensure_groups()
    served = {taken.partition for _ in range(PARTITIONS) for taken in await intake.take(1)}
    assert served == set(jobs)
