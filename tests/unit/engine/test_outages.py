"""A worker whose Redis fails it: connections cut, scripts gone, rights taken away. More in tests/e2e/faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
import redis.asyncio
from redis.asyncio import Redis

from deltafan.broker.keys import Partition
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script as Answers
from deltafan.devserver.provider import Text, parse_faults, running
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.events import Event
from deltafan.settings import RedisSettings
from deltafan.telemetry.hooks import Signal
from tests.conftest import StartWorker
from tests.oracle import check_whole

K = Partition(0)
TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxied(redis_url) as opened:
        yield opened


@pytest.fixture
def redis_settings(proxy: Proxy, redis_url: str) -> RedisSettings:
    """Worker and follower are behind the proxy."""
    return RedisSettings(url=proxy.url(redis_url), command_timeout=1.0, probe_interval=0.2)


@pytest_asyncio.fixture
async def direct(redis_url: str) -> AsyncIterator[Redis]:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield client


async def _all(queue: AsyncQueue, job_id: str) -> list[Event]:
    async with asyncio.timeout(15):
        return [event async for event in queue.job(job_id).events()]


async def _following(queue: AsyncQueue, job_id: str) -> asyncio.Task[list[Event]]:
    """A follower that has got something: from now on it waits outages out."""
    events = queue.job(job_id).events()
    first = await anext(events)

    async def rest() -> list[Event]:
        async with asyncio.timeout(15):
            return [first, *[event async for event in events]]

    return asyncio.create_task(rest())


async def _until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await check():
            await asyncio.sleep(0.005)


async def _empty(direct: Redis) -> None:
    async def empty() -> bool:
        return sum([await direct.xlen(stream) for stream in K.queues("default")]) == 0

    await _until(empty)


async def test_an_outage_in_mid_stream_is_waited_out_with_a_bounded_buffer(
    queue: AsyncQueue, direct: Redis, proxy: Proxy, start_worker: StartWorker
) -> None:
    text = "0123456789" * 30_000
    buffer = 16 * 1024
    async with running(Answers(source=Text(text), chunk_size=100)) as fast:
        worker = await start_worker(fast, buffer_bytes=buffer, lease=30)
        job = await queue.enqueue(model="m", prompt="x")
        follower = await _following(queue, job.id)
        proxy.go_away()
        log = worker.engine._runs[job.id].log

        async def full() -> bool:
            return log.full

        await _until(full)
        assert log.output_chars < len(text)
        for _ in range(20):  # the provider is not read meanwhile, however long it lasts
            await asyncio.sleep(0.005)
            put_out = log.output_chars
            written = sum(len(fields[b"e"]) for _, fields in await direct.xrange(K.log(job.id)))
            assert put_out - written <= buffer + 200
        proxy.come_back()
        check_whole(await follower, text)
    status = await job.status()
    assert (status.state, status.attempt) == ("done", 1)
    await _empty(direct)


async def test_cuts_all_along_cost_nothing(
    queue: AsyncQueue, direct: Redis, proxy: Proxy, start_worker: StartWorker
) -> None:
    async with running(Answers(source=Text(TEXT), rate=150)) as paced:
        await start_worker(paced, lease=30)
        jobs = [await queue.enqueue(model="m", prompt=str(n)) for n in range(5)]
        followers = [await _following(queue, job.id) for job in jobs]
        for n in range(1, 5):
            await paced.until(lambda requests, n=n: len(requests) == 5 and requests[0].text_length > 8 * n)  # type: ignore[misc]
            proxy.cut()
        for follower in followers:
            check_whole(await follower, TEXT)
        assert len(paced.requests) == 5
    await _empty(direct)


async def test_a_server_that_forgets_its_scripts_all_the_time_is_served(
    queue: AsyncQueue, direct: Redis, start_worker: StartWorker
) -> None:
    flushes, enough = 0, asyncio.Event()

    async def flush() -> None:
        nonlocal flushes
        while not enough.is_set():
            await direct.script_flush()
            flushes += 1
            await asyncio.sleep(0.001)

    flushing = asyncio.create_task(flush())
    try:
        async with running(Answers(source=Text(TEXT), rate=400, faults=parse_faults("cut=5*1"))) as paced:
            await start_worker(paced)
            jobs = [await queue.enqueue(model="m", prompt="x", delay=n / 100) for n in range(4)]
            for job in jobs:
                check_whole(await _all(queue, job.id), TEXT)
    finally:
        enough.set()
        await flushing
    assert flushes > 10
    await _empty(direct)


async def test_a_redis_that_refuses_our_writes_for_a_while_costs_no_job(
    queue: AsyncQueue, direct: Redis, start_worker: StartWorker
) -> None:
    """An operator takes a right away, and gives it back while the stream runs."""
    refused = asyncio.Event()

    def hook(signal: Signal) -> None:
        if signal.name == "redis.refused":
            refused.set()

    async with running(Answers(source=Text(TEXT), rate=100)) as paced:
        await start_worker(paced, services={"hook": hook}, lease=30, reap_interval=0.05)
        job = await queue.enqueue(model="m", prompt="x")
        follower = asyncio.create_task(_all(queue, job.id))
        await paced.until(lambda requests: bool(requests and requests[0].text_length))
        await direct.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
        try:
            async with asyncio.timeout(5):
                await refused.wait()
        finally:
            await direct.execute_command("ACL", "SETUSER", "default", "+evalsha", "+eval")
        check_whole(await follower, TEXT)
    status = await job.status()
    assert status.state == "done"
    await _empty(direct)
