"""Case 8: somebody kills connections at the server, of each kind and all at once, every 100 ms for ten seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.chaos.rig import TEXT, Job, Rig
from deltafan.errors import BrokerUnavailable

SECONDS = 10.0
EVERY = 0.1
JOBS = 4
Client = dict[str, Any]
Kill = Callable[[Redis], Awaitable[int]]


@pytest_asyncio.fixture
async def operator(rig: Rig) -> AsyncIterator[Redis]:
    """One connection that nobody kills."""
    async with Redis.from_url(rig.backend.url, single_connection_client=True) as client:
        yield client


async def _killed(operator: Redis, wanted: Callable[[Client], bool]) -> int:
    """Kill connections by id; gives how many there were."""
    own = await operator.client_id()
    clients = [client for client in await operator.client_list() if int(client["id"]) != own and wanted(client)]
    return sum([await operator.client_kill_filter(_id=client["id"]) for client in clients])


async def _commands(operator: Redis) -> int:
    return await _killed(operator, lambda c: c["cmd"] not in ("evalsha", "eval", "xreadgroup", "subscribe", "ping"))


async def _appends(operator: Redis) -> int:
    return await _killed(operator, lambda c: c["cmd"] in ("evalsha", "eval"))


async def _blocking(operator: Redis) -> int:
    return await _killed(operator, lambda c: "b" in c["flags"])


async def _subscriptions(operator: Redis) -> int:
    return await _killed(operator, lambda c: int(c["sub"]) > 0)


async def _all(operator: Redis) -> int:
    return sum([await operator.client_kill_filter(_type=kind, skipme=True) for kind in ("normal", "pubsub")])


async def _jobs(rig: Rig, *relays: Any, number: int = JOBS) -> list[Job]:
    jobs = []
    for _ in range(number):
        while True:
            try:
                job = await rig.enqueue(TEXT * 6, rate=60, idempotency_key=f"job {len(rig.jobs)}")
                break
            except BrokerUnavailable:  # it was our own connection: the key makes trying again safe
                continue
        await job.follow(*relays)
        jobs.append(job)
    return jobs


async def _killing(rig: Rig, operator: Redis, kill: Kill, seconds: float, *relays: Any) -> int:
    """Kill over and over, with jobs beginning all the time."""
    loop = asyncio.get_running_loop()
    until, killed, next_jobs = loop.time() + seconds, 0, loop.time()
    while loop.time() < until:
        if loop.time() >= next_jobs:
            next_jobs += 1.0
            await _jobs(rig, *relays, number=2)
        killed += await kill(operator)
        await asyncio.sleep(EVERY)
    return killed


async def test_all_connections_killed_every_100_ms_for_ten_seconds_cost_nothing(rig: Rig, operator: Redis) -> None:
    await rig.worker(lease=5)
    relay = await rig.relay()
    await _jobs(rig, relay)
    killed = await _killing(rig, operator, _all, SECONDS, relay)
    assert killed > 100
    await rig.check()
    for job in rig.jobs:
        assert len(job.requests) == 1, "nobody lost a lease: a heartbeat gets through"


@pytest.mark.parametrize("kill", [_commands, _appends, _blocking, _subscriptions], ids=lambda f: f.__name__.strip("_"))
async def test_connections_of_one_kind_killed_all_the_time_cost_nothing(rig: Rig, operator: Redis, kill: Kill) -> None:
    await rig.worker(lease=5)
    relay = await rig.relay()
    await _jobs(rig, relay)
    killed = await _killing(rig, operator, kill, 2.0, relay)
    assert killed > 1
    await rig.check()
    for job in rig.jobs:
        assert len(job.requests) == 1
