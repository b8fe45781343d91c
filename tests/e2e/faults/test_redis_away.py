"""Case 11: Redis cannot be reached for twenty seconds, refused or hung, by everybody or by one worker alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.followers import Seen
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Rig
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.errors import BrokerUnavailable
from tests.e2e.faults.redis_kit import here, memory_of

AWAY = 20.0
"""Seconds: two leases of a worker's default, so that every heartbeat runs out."""
LONG_TEXT = TEXT * 40


def _has(events: int) -> Callable[[Seen], bool]:
    return lambda seen: len(seen.events) >= events


def _refuse(proxy: Proxy) -> None:
    proxy.go_away()


def _hang(proxy: Proxy) -> None:
    proxy.up.swallows = proxy.down.swallows = True


def _both(program: Program) -> Proxy:
    assert program.redis is not None
    return program.redis


async def _heartbeats(
    rig: Rig, relay: Program, job_id: str, opened: asyncio.Event, stop: asyncio.Event
) -> tuple[int, float]:
    """Follow a stream until told; gives its heartbeats, and the longest silence in seconds."""
    number, longest, last = 0, 0.0, time.monotonic()
    async with rig.http.get(f"{relay.url}/v1/jobs/{job_id}/events") as answer:
        assert answer.status == 200
        opened.set()
        async for line in answer.content:
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            number += line.startswith(b"event: heartbeat")
            if stop.is_set():
                break
    return number, longest


@pytest.mark.parametrize("fails", [_refuse, _hang], ids=["refused", "hung"])
async def test_with_redis_away_for_all_everything_waits_and_goes_on_by_itself(rig: Rig, fails: Any) -> None:
    workers = [await rig.worker(lease=2), await rig.worker(lease=2)]
    relay = await rig.relay()
    jobs = [await rig.enqueue(LONG_TEXT, rate=25) for _ in range(4)]
    for job in jobs:
        await job.follow(relay)
    for job in jobs:
        await job.until(_has(4))
    opened, over = asyncio.Event(), asyncio.Event()
    alive = asyncio.create_task(_heartbeats(rig, relay, jobs[0].id, opened, over))
    await opened.wait()
    async with (
        proxied(rig.backend.url) as between,
        AsyncQueue(rig.settings.model_copy(update={"url": between.url(rig.backend.url)})) as producer,
    ):
        await producer.enqueue(model="vllm/scripted", prompt="it has a connection", delay=86_400)
        proxies = [between, *(_both(program) for program in (*workers, relay))]
        for proxy in proxies:
            fails(proxy)
        began = time.monotonic()
        tried = 0
        while time.monotonic() - began < AWAY:
            asked = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="Redis cannot be reached"):
                await producer.enqueue(model="vllm/scripted", prompt="x")
            async with rig.http.post(f"{relay.url}/v1/jobs", json={"model": "vllm/scripted", "prompt": "x"}) as answer:
                told = (answer.status, answer.headers["Retry-After"], (await answer.json())["error"]["code"])
            assert told == (503, "2", "unavailable")
            async with rig.http.get(f"{relay.url}/v1/jobs/{jobs[0].id}/events") as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            assert time.monotonic() - asked < 3 * rig.settings.command_timeout + 10, "each within its deadline"
            tried += 1
            await asyncio.sleep(1.0)
        assert tried > 1
        assert not alive.done(), "an open stream stays open"
        for proxy in proxies:
            proxy.heal()
        over.set()
        heartbeats, silence = await alive
    assert heartbeats > AWAY / 2  # one each half second
    assert silence < AWAY / 2
    for job in jobs:
        await job.ended()
    await rig.check(*jobs, settled=False)
    for job in jobs:
        assert len(job.requests) == 1, "nobody took over: all were away"
        assert (await job.handle.status()).failures == 0


async def test_a_provider_flat_out_fills_a_bounded_buffer_while_redis_is_away(rig: Rig) -> None:
    """The worker does not read on: the provider feels it."""
    worker = await rig.worker(buffer_bytes=64 * 1024, lease=3600)
    text = "0123456789abcdef" * (600 * 1024 // 16)  # in pieces of 8 it is 15 MB on the wire: more than sockets hold
    job = await rig.enqueue(text, scripted={"chunk_size": "8"})
    await job.follow()
    await job.until(_has(2))
    _both(worker).go_away()
    before = memory_of(worker.pid)
    sent, steady = -1, 0
    async with asyncio.timeout(30):
        while steady < 10:  # a second without a byte: it waits
            await asyncio.sleep(0.1)
            now = job.requests[0].text_length
            sent, steady = now, steady + 1 if now == sent else 0
    assert sent < len(text)
    assert memory_of(worker.pid) - before < 32 * 1024 * 1024
    _both(worker).come_back()
    await rig.check()
    assert len(job.requests) == 1


async def test_a_worker_cut_off_alone_is_replaced_and_refused_when_it_comes_back(rig: Rig) -> None:
    async with here(rig) as parts:
        first = await parts.worker()
        job = await rig.enqueue(LONG_TEXT, rate=40)
        await job.follow()
        await job.until(_has(4))
        await parts.worker()
        first.redis.go_away()
        await job.until(lambda seen: bool(seen.last and seen.last.attempt == 2))
        first.redis.come_back()
        await rig.check(overlaps=True)
        ended = [s.fields["outcome"] for s in first.signals if s.name == "attempt.ended"]
        assert ended == ["fenced"]
    assert {seen.events[-1].id.attempt for seen in job.seen.values() if seen.events[-1].id} == {2}
