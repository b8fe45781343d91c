"""Case 8: somebody kills connections at the server, of each kind and all at once, every 100 ms for ten seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.chaos.audit import of_servers
from deltafan.chaos.rig import TEXT, Job, Rig
from deltafan.errors import BrokerUnavailable
from tests.e2e.faults.topologies_kit import primaries

SECONDS = {"valkey": 10.0, "cluster": 4.0, "sentinel": 4.0}
EVERY = 0.1
JOBS = 4
Client = dict[str, Any]
Operator = list[Redis]
Kill = Callable[[Operator], Awaitable[int]]


@pytest_asyncio.fixture
async def operator(rig: Rig) -> AsyncIterator[Operator]:
    """One connection to each server that takes writes, which nobody kills."""
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(Redis.from_url(node.url, single_connection_client=True))
            for node in await primaries(rig.backend)
        ]
        yield made


async def _killed(operator: Operator, wanted: Callable[[Client], bool]) -> int:
    """Kill connections by id, all at once at each server; gives how many there were. Servers keep their own."""
    killed = 0
    for redis in operator:
        own = await redis.client_id()
        clients = [c for c in await redis.client_list() if int(c["id"]) != own and wanted(c) and not of_servers(c)]
        pipe = redis.pipeline(transaction=True)
        for client in clients:
            pipe.client_kill_filter(_id=client["id"])
        killed += sum(await pipe.execute())
    return killed


async def _commands(operator: Operator) -> int:
    return await _killed(operator, lambda c: c["cmd"] not in ("evalsha", "eval", "xreadgroup", "subscribe", "ping"))


async def _appends(operator: Operator) -> int:
    return await _killed(operator, lambda c: c["cmd"] in ("evalsha", "eval"))


async def _blocking(operator: Operator) -> int:
    return await _killed(operator, lambda c: "b" in c["flags"])


async def _subscriptions(operator: Operator) -> int:
    return await _killed(operator, lambda c: int(c["sub"]) > 0)


async def _all(operator: Operator) -> int:
    return await _killed(operator, lambda c: True)


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


async def _killing(rig: Rig, operator: Operator, kill: Kill, seconds: float, *relays: Any) -> int:
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


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_all_connections_killed_every_100_ms_for_seconds_cost_nothing(
    rig: Rig, operator: Operator, topology: str
) -> None:
    await rig.worker(lease=5)
    relay = await rig.relay()
    await _jobs(rig, relay)
    killed = await _killing(rig, operator, _all, SECONDS[topology], relay)
    assert killed > 100
    await rig.check()
    for job in rig.jobs:
        assert len(job.requests) == 1, "nobody lost a lease: a heartbeat gets through"


@pytest.mark.parametrize("kill", [_commands, _appends, _blocking, _subscriptions], ids=lambda f: f.__name__.strip("_"))
async def test_connections_of_one_kind_killed_all_the_time_cost_nothing(
    rig: Rig, operator: Operator, kill: Kill
) -> None:
    await rig.worker(lease=5)
    relay = await rig.relay()
    await _jobs(rig, relay)
    killed = await _killing(rig, operator, kill, 2.0, relay)
    assert killed > 1
    await rig.check()
    for job in rig.jobs:
        assert len(job.requests) == 1
