"""Case 24: dead consumers, expired, finished and dead jobs by the thousand. What Redis holds returns to its base line,
and the processes that ran and showed them keep nothing of them.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.broker import expiry
from deltafan.broker.dead import list_dead
from deltafan.broker.keys import GROUP, Partition
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.rig import eventually
from deltafan.errors import CompletionError
from deltafan.events import Done, Event, TextDelta, Usage
from deltafan.llm import Request
from deltafan.settings import Retention
from tests.conftest import RunningWorker, StartWorker
from tests.e2e.relay_kit import running_relay

K = Partition(0)
STREAM = K.queue("default", "normal")
SHORT = Retention(retention=1.0, dead_retention=1.0)
SLACK = 256 << 10
"""Bytes by which Redis's memory may differ: of its own statistics, buffers and half-empty tables."""


class Model:
    """Says three words at once; one called `bad` refuses."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        if request.model == "bad":
            raise CompletionError("bad_request", "no")
        for word in ("one ", "two ", "three"):
            yield TextDelta(word)
        yield Usage(1, 3, 4, source="reported")
        yield Done("stop")


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def _start(start_worker: StartWorker, **settings: Any) -> RunningWorker:
    services = {"completions": Model(), "retention": SHORT}
    return await start_worker(services=services, reap_interval=0.1, **settings)


async def _keys(redis: Redis) -> dict[bytes, int]:
    """Every key with the memory it takes, but the workers' heartbeats."""
    found = [key async for key in redis.scan_iter(count=1000)]
    return {key: await redis.memory_usage(key) or 0 for key in found if b":worker:" not in key}


async def _dataset(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory_dataset"])


async def _run(queue: AsyncQueue, number: int, **fields: Any) -> None:
    """Run so many jobs to their end, some at once, followed by nobody."""
    redis = queue.connections.commands

    async def enqueue(first: int) -> None:
        for n in range(first, number, 20):
            await queue.enqueue({"model": "m", "prompt": f"{n}"} | fields)

    await asyncio.gather(*map(enqueue, range(20)))
    await eventually(lambda: _idle(redis), timeout=40)


async def _idle(redis: Redis) -> bool:
    return not await redis.xlen(STREAM) and not await redis.zcard(K.delayed("default"))


async def _back_to(redis: Redis, keys: dict[bytes, int], dataset: int) -> None:
    async def gone() -> bool:
        return {key for key in await redis.keys() if b":worker:" not in key} == set(keys)

    await eventually(gone, timeout=30)
    now = await _keys(redis)
    assert {key: size for key, size in now.items() if size > keys[key] + 4096} == {}
    assert await _dataset(redis) < dataset + SLACK


async def test_ended_jobs_of_every_kind_leave_redis_as_it_was(
    redis: Redis, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await _start(start_worker)
    await _run(queue, 20)
    await _run(queue, 5, model="bad")  # an empty stream of dead letters stays, as a queue does
    await eventually(lambda: _swept(redis), timeout=30)
    keys, dataset = await _keys(redis), await _dataset(redis)
    await _run(queue, 1500)
    await _run(queue, 200, metadata={"blob": "x" * 10_000})
    await _run(queue, 200, delay=0.05)
    await _run(queue, 200, model="bad")
    for n in range(200):
        await queue.enqueue(model="m", prompt="x", idempotency_key=f"key-{n}")
    for key in await redis.keys("*:idempotency:*"):
        assert 0 < await redis.pttl(key) <= 86_400_000
        await redis.pexpire(key, 1)
    await _back_to(redis, keys, dataset)


async def _swept(redis: Redis) -> bool:
    return not await redis.zcard(K.expiries) and not [key async for key in redis.scan_iter(match="*:job:*")]


async def test_thousands_of_jobs_that_expire_at_once_end_in_a_look_or_two_and_go(
    redis: Redis, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await asyncio.gather(*(queue.enqueue(model="m", prompt="x", delay=3600, expires_in=0.05) for _ in range(1500)))
    await eventually(lambda: _is_late(redis))
    looks = 0
    while await redis.zcard(K.deadlines):
        await expiry.expire(redis, 0, SHORT)
        looks += 1
    assert looks <= 2
    assert not await redis.zcard(K.delayed("default"))
    await eventually(lambda: _all_due(redis), timeout=30)
    assert await expiry.sweep(redis, 0) == 1500
    assert not await redis.exists(K.expiries, K.index("default"))


async def _is_late(redis: Redis) -> bool:
    [(_, latest)] = await redis.zrange(K.deadlines, -1, -1, withscores=True)
    return bool(latest < (await redis.time())[0] * 1000)


async def _all_due(redis: Redis) -> bool:
    [(_, latest)] = await redis.zrange(K.expiries, -1, -1, withscores=True)
    return bool(latest < (await redis.time())[0] * 1000)


async def test_ten_thousand_names_of_dead_workers_are_forgotten_and_hold_nobody_up(
    redis: Redis, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await _start(start_worker)
    await _run(queue, 5)
    dataset = await _dataset(redis)
    pipe = redis.pipeline(transaction=False)
    for number in range(10_000):
        pipe.execute_command("XGROUP", "CREATECONSUMER", STREAM, GROUP, f"dead-{number}")
    await pipe.execute()
    await _run(queue, 50)

    async def forgotten() -> bool:
        return len(await redis.xinfo_consumers(STREAM, GROUP)) == 1

    await eventually(forgotten, timeout=50)
    await eventually(lambda: _swept(redis), timeout=30)
    assert await _dataset(redis) < dataset + SLACK


async def test_old_dead_letters_go_and_young_ones_stay(
    redis: Redis, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    """Of a queue that is served. Their number alone would allow a hundred gigabytes."""
    now = (await redis.time())[0] * 1000
    for age in (40, 31, 29, 1):
        letter = {
            "id": f"0-{age}",
            "tenant": "default",
            "reason": "x",
            "errors": "[]",
            "died": now,
            "job": "x" * 100_000,
        }
        await redis.xadd(K.dead("default"), letter, id=f"{now - age * 86_400_000}-0")
    await start_worker(reap_interval=0.1)

    async def two() -> bool:
        return await redis.xlen(K.dead("default")) == 2

    await eventually(two)
    assert [letter.job_id for letter in await list_dead(redis, 1, "default")] == ["0-1", "0-29"]


async def _growth(work: Callable[[int], Awaitable[None]]) -> float:
    """Objects that stay alive for each piece of work, in this process. A leak shows every time; timers and caches do
    not.
    """
    await work(300)
    found: list[float] = []
    for _ in range(3):
        gc.collect()
        before = len(gc.get_objects())
        await work(300)
        gc.collect()
        found.append((len(gc.get_objects()) - before) / 300)
    return min(found)


async def test_a_worker_keeps_nothing_of_the_jobs_it_has_run(queue: AsyncQueue, start_worker: StartWorker) -> None:
    worker = await _start(start_worker)
    assert await _growth(lambda number: _run(queue, number)) < 0.5
    assert worker.engine.running == 0


async def test_a_relay_and_a_client_keep_nothing_of_the_jobs_they_have_shown(
    queue: AsyncQueue, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    await _start(start_worker)

    async def show(number: int) -> None:
        for _ in range(number // 5):
            job = await queue.enqueue(model="m", prompt="x")
            async with http.get(f"{relay.url}/v1/jobs/{job.id}/events") as response:
                assert b"event: done" in await response.read()
            assert [event async for event in job.events()][-1].type == "done"

    async with running_relay(queue, key_rate=0, address_rate=0) as relay:
        assert await _growth(show) < 0.5
