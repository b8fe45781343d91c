"""Case 5: a relay is killed under two hundred SSE clients: they go on at another one, or at the same one restarted."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from deltafan.chaos.followers import by_sse
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually

JOBS = 8
CLIENTS = 25
"""Of each job."""


async def _crowd(rig: Rig, *relays: Program) -> list[Job]:
    """Jobs that stream, and their clients, who have all seen the first token; all are at the first relay."""
    jobs = [await rig.enqueue(TEXT * 12, rate=40) for _ in range(JOBS)]
    for job in jobs:
        for number in range(CLIENTS):
            job.start(f"sse{number}", by_sse(rig.http, [relay.url for relay in relays], job.id))
    for job in jobs:
        await job.begun()
    return jobs


async def _streams(rig: Rig, relay: Program) -> dict[str, Any]:
    async with rig.http.get(f"{relay.url}/v1/stats") as answer:
        statistics: dict[str, Any] = (await answer.json())["streams"]
    return statistics


async def _wait_for(rig: Rig, relay: Program, streams: int) -> None:
    async def all_there() -> bool:
        return bool((await _streams(rig, relay))["open"] == streams)

    await eventually(all_there)


def _check_resumed(jobs: list[Job]) -> None:
    for job in jobs:
        for seen in job.seen.values():
            assert seen.connections > 1
            assert seen.resets == 0, "nobody is told that what it has is void"


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_two_hundred_clients_of_a_killed_relay_go_on_at_another_one(rig: Rig) -> None:
    worker, first, second = await rig.worker(), await rig.relay(), await rig.relay()
    jobs = await _crowd(rig, first, second)
    worker.provider.down.hold()  # type: ignore[union-attr]  # so that no job ends before its clients have moved
    first.kill()
    await _wait_for(rig, second, JOBS * CLIENTS)
    worker.provider.down.flow()  # type: ignore[union-attr]
    await rig.check()
    _check_resumed(jobs)
    await _wait_for(rig, second, 0)


@pytest.mark.parametrize("meanwhile", ["jobs wait", "jobs go on"])
async def test_two_hundred_clients_of_a_killed_relay_go_on_when_it_is_back(rig: Rig, meanwhile: str) -> None:
    worker, first = await rig.worker(), await rig.relay()
    jobs = await _crowd(rig, first)
    first.kill()
    await first.ended()
    if meanwhile == "jobs wait":
        worker.provider.down.hold()  # type: ignore[union-attr]
    again = await rig.relay(port=urlsplit(first.url).port)
    assert again.url == first.url
    if meanwhile == "jobs wait":
        await _wait_for(rig, again, JOBS * CLIENTS)
        worker.provider.down.flow()  # type: ignore[union-attr]
    await rig.check()
    _check_resumed(jobs)
