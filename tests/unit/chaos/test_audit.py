"""What was left behind is found, by keys put there by hand; a Redis in order has nothing to tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.audit import (
    connection_problems,
    expiry_problems,
    queue_problems,
    read_log,
    record_problems,
)
from deltafan.chaos.oracle import transcript_of
from tests.unit.chaos.kit import whole


@pytest_asyncio.fixture
async def connections(queue: AsyncQueue) -> AsyncIterator[Connections]:
    await queue.connections.commands.flushdb()
    yield queue.connections


async def test_an_empty_redis_has_nothing_left_behind(connections: Connections) -> None:
    assert await queue_problems(connections) == []
    assert await expiry_problems(connections) == []


async def test_a_job_that_waits_is_left_behind(queue: AsyncQueue, connections: Connections) -> None:
    job = await queue.enqueue(model="m", prompt="x")
    assert await queue_problems(connections) == ["deltafan:{0}:queue:default:normal holds 1 entries"]
    await job.cancel()
    assert await queue_problems(connections) == []


async def test_an_entry_that_nobody_acknowledged_is_left_behind(queue: AsyncQueue, connections: Connections) -> None:
    await queue.enqueue(model="m", prompt="x")
    stream = "deltafan:{0}:queue:default:normal"
    await connections.commands.xgroup_create(stream, "workers", id="0")
    await connections.commands.xreadgroup("workers", "one", {stream: ">"})
    assert f"{stream} has 1 unacknowledged entries" in await queue_problems(connections)


async def test_a_delayed_job_is_left_behind(queue: AsyncQueue, connections: Connections) -> None:
    await queue.enqueue(model="m", prompt="x", delay=60, expires_in=90)
    assert await queue_problems(connections) == [
        "deltafan:{0}:delayed:default holds 1 jobs",
        "deltafan:{0}:deadlines holds 1 jobs",
    ]


@pytest.mark.parametrize("key", ["log:0-x", "job:0-x", "worker:w", "idempotency:abc"])
async def test_a_key_of_ours_that_never_expires_is_left_behind(connections: Connections, key: str) -> None:
    await connections.commands.set(f"deltafan:{{0}}:{key}", "x")
    await connections.commands.set("another's key", "x")
    assert await expiry_problems(connections) == [f"deltafan:{{0}}:{key} never expires"]
    await connections.commands.expire(f"deltafan:{{0}}:{key}", 60)
    assert await expiry_problems(connections) == []


async def test_a_record_that_disagrees_with_what_was_seen_is_told(queue: AsyncQueue, connections: Connections) -> None:
    job = await queue.enqueue(model="m", prompt="x")
    seen = transcript_of(whole())
    assert "its record says queued, its done stop" in await record_problems(connections, job.id, seen)
    await job.cancel()
    nothing = transcript_of([])
    assert await record_problems(connections, job.id, nothing) == [
        "its record says cancelled, and nobody saw a done",
    ]
    log = transcript_of(await read_log(connections, job.id))
    assert await record_problems(connections, job.id, log) == []
    await connections.commands.xadd("deltafan:{0}:dead:default", {"id": job.id})
    assert await record_problems(connections, job.id, log) == ["it is cancelled and has a dead letter"]
    assert await record_problems(connections, "0-nobody", log) == ["has no record"]


async def test_a_connection_that_stays_open_is_named_by_its_last_command(redis_url: str) -> None:
    async with Redis.from_url(redis_url, client_name="forgotten") as forgotten:
        await forgotten.get("x")
        found = await connection_problems(redis_url, 0.0)
        assert any("is open (get)" in problem for problem in found)
    async with asyncio.timeout(10):
        while any("is open (get)" in problem for problem in await connection_problems(redis_url, 0.1)):
            await asyncio.sleep(0.05)
