"""Case 13: Redis does what it is asked, and the connection breaks before the answer: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.broker.keys import Partition
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import (
    ACK,
    APPEND,
    CANCEL,
    CLAIM,
    ENQUEUE,
    EXPIRE,
    FINISH,
    PROMOTE,
    REAP,
    RELEASE,
    RETRY,
    TAKE,
    Script,
)
from deltafan.chaos.followers import Seen
from deltafan.chaos.rig import TEXT, Job, Rig, eventually
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.errors import BrokerUnavailable
from deltafan.sinks.base import JobInfo
from deltafan.sinks.memory import MemorySink
from tests.e2e.faults.redis_kit import Here, here, runs, teach

K = Partition(0)
LONG = TEXT * 6


@pytest_asyncio.fixture
async def parts(rig: Rig) -> AsyncIterator[Here]:
    await teach(rig)
    async with here(rig) as opened:
        yield opened


@asynccontextmanager
async def _published(rig: Rig) -> AsyncIterator[Callable[[str], list[str]]]:
    """What went out on the jobs' live channels, by a plain subscriber: ids in order."""
    heard: dict[str, list[str]] = {}

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["data"] != b"x":  # a worker that starts tries whether it may publish
                event = orjson.loads(message["data"])
                heard.setdefault(event["job"], []).append(event["id"])

    async with Redis.from_url(rig.backend.url, socket_timeout=None) as redis, redis.pubsub() as pubsub:
        await pubsub.psubscribe("deltafan:*live:*")
        confirmed = await pubsub.get_message(timeout=10)
        assert confirmed is not None
        listening = asyncio.create_task(listen())
        try:
            yield lambda job_id: heard.get(job_id, [])
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _once_each(rig: Rig, job: Job, published: Callable[[str], list[str]]) -> None:
    """Each event of the log was published, in order and once."""
    assert rig.redis is not None
    log = [entry.decode() for entry, _ in await rig.redis.xrange(K.log(job.id))]

    async def heard_all() -> bool:
        return bool(published(job.id)) and published(job.id)[-1] == log[-1]

    await eventually(heard_all)
    assert published(job.id) == log, Counter(published(job.id)).most_common(3)


async def _cut(proxy: Proxy) -> None:
    async with asyncio.timeout(20):
        await proxy.was_cut.wait()


@pytest.mark.parametrize("script", [TAKE, CLAIM, APPEND, FINISH], ids=lambda script: script.name)
async def test_a_lost_reply_in_a_jobs_run_costs_no_event_and_repeats_none(
    rig: Rig, parts: Here, script: Script
) -> None:
    worker = await parts.worker(reap_interval=0.05)
    async with _published(rig) as published:
        worker.redis.cut_after_request(runs(script))
        job = await rig.enqueue(LONG, rate=200)
        await job.follow()
        await _cut(worker.redis)
        await rig.check()
        await _once_each(rig, job, published)
    status = await job.handle.status()
    assert (status.state, status.attempt, status.failures) == ("done", 1, 0)
    assert len(job.requests) == 1


async def test_an_append_whose_reply_is_lost_again_and_again_is_applied_once(rig: Rig, parts: Here) -> None:
    worker = await parts.worker(lease=30)
    async with _published(rig) as published:
        job = await rig.enqueue(LONG, rate=60)
        await job.follow()
        for events in range(2, 10, 2):
            await job.until(lambda seen, events=events: len(seen.events) >= events)  # type: ignore[misc]
            worker.redis.cut_after_request(runs(APPEND))
            await _cut(worker.redis)
        await rig.check()
        await _once_each(rig, job, published)
    assert len(job.requests) == 1


async def test_a_retry_whose_reply_is_lost_is_charged_once(rig: Rig, parts: Here) -> None:
    worker = await parts.worker()
    async with _published(rig) as published:
        worker.redis.cut_after_request(runs(RETRY))
        job = await rig.enqueue(LONG, rate=400, scripted={"fault": "cut=5*1"})
        await job.follow()
        await _cut(worker.redis)
        await rig.check()
        await _once_each(rig, job, published)
    status = await job.handle.status()
    assert (status.attempt, status.failures, len(status.attempt_errors)) == (2, 1, 1)


async def test_a_promotion_whose_reply_is_lost_queues_the_job_once(rig: Rig, parts: Here) -> None:
    worker = await parts.worker()
    worker.redis.cut_after_request(runs(PROMOTE))
    job = await rig.enqueue(TEXT, delay=0.2)
    await job.follow()
    await _cut(worker.redis)
    await rig.check()
    assert len(job.requests) == 1


async def test_a_hand_over_whose_reply_is_lost_still_is_one(rig: Rig, parts: Here) -> None:
    leaving = await parts.worker(drain=0)
    async with _published(rig) as published:
        job = await rig.enqueue(LONG, rate=80, on_takeover="restart")
        await job.follow()
        await job.begun(4)
        leaving.redis.cut_after_request(runs(RELEASE))
        await leaving.drain()
        assert leaving.redis.was_cut.is_set()
        await parts.worker()
        await rig.check()
        await _once_each(rig, job, published)
    status = await job.handle.status()
    assert (status.attempt, status.failures) == (2, 0)


async def test_a_reaping_whose_reply_is_lost_charges_one_failure(rig: Rig, parts: Here) -> None:
    lost = await parts.worker()
    job = await rig.enqueue(LONG, rate=80)
    await job.follow()
    await job.begun(4)
    reaper = await parts.worker()
    reaper.redis.cut_after_request(runs(REAP))
    await lost.vanish()
    await _cut(reaper.redis)
    await rig.check()
    status = await job.handle.status()
    assert (status.attempt, status.failures) == (2, 1)


async def test_an_expiry_whose_reply_is_lost_ends_the_job_once(rig: Rig, parts: Here) -> None:
    worker = await parts.worker()
    async with _published(rig) as published:
        worker.redis.cut_after_request(runs(EXPIRE))
        job = await rig.enqueue(TEXT, delay=60, expires_in=0.5)
        await job.follow()
        await _cut(worker.redis)
        await rig.check(whole=False)
        await _once_each(rig, job, published)
    assert (await job.handle.status()).state == "expired"


async def test_an_acknowledgement_whose_reply_is_lost_delivers_nothing_twice(rig: Rig, parts: Here) -> None:
    sink = MemorySink()

    async def opened(job: JobInfo) -> MemorySink:
        return sink

    worker = await parts.worker(sinks={"memory": opened})
    worker.redis.cut_after_request(runs(ACK))
    job = await rig.enqueue(TEXT, sinks=["memory"])
    await job.follow()
    await _cut(worker.redis)
    await rig.check()
    ids = [event.id for event in sink.events]
    assert ids
    assert ids == sorted(set(ids))  # type: ignore[type-var]
    assert len(job.requests) == 1


@asynccontextmanager
async def _producer(rig: Rig) -> AsyncIterator[tuple[AsyncQueue, Proxy]]:
    async with proxied(rig.backend.url) as proxy:
        settings = rig.settings.model_copy(update={"url": proxy.url(rig.backend.url)})
        async with AsyncQueue(settings) as queue:
            yield queue, proxy


async def test_an_enqueue_whose_reply_is_lost_is_told_and_tried_again_makes_no_second_job(
    rig: Rig, parts: Here
) -> None:
    await parts.worker()
    spec: dict[str, Any] = {"model": "vllm/scripted", "prompt": "once", "idempotency_key": "k"}
    async with _producer(rig) as (queue, proxy):
        proxy.cut_after_request(runs(ENQUEUE))
        with pytest.raises(BrokerUnavailable):
            await queue.enqueue(spec)
        assert proxy.was_cut.is_set()
        submitted = await queue.submit(spec)
        assert not submitted.created
        await queue.job(submitted.id).result(timeout=20)
    assert len(rig.provider.requests) == 1


async def test_a_cancel_whose_reply_is_lost_holds_and_may_be_asked_for_again(rig: Rig, parts: Here) -> None:
    await parts.worker()
    job = await rig.enqueue(LONG, rate=20)
    await job.follow()
    await job.begun(3)
    async with _producer(rig) as (queue, proxy):
        proxy.cut_after_request(runs(CANCEL))
        with pytest.raises(BrokerUnavailable):
            await queue.job(job.id).cancel()
        assert proxy.was_cut.is_set()
        await job.ended()
        outcome = await queue.job(job.id).cancel()
    assert outcome.cancelled
    assert (await job.handle.status()).state == "cancelled"
    seen: Seen = job.seen["client"]
    assert seen.events[-1].finish_reason == "cancelled"  # type: ignore[attr-defined]
