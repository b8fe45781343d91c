"""CPU of the whole worker per delta: socket, decoded, appended and published; against the naive worker."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys

import aiohttp
import redis.asyncio

from deltafan.broker.queue import AsyncQueue
from tests.bench.parts import Parts, parts
from tests.bench.report import Row, cpu_seconds

RATE = 50
SECONDS = 5.0
ROUNDS = 3


async def measure() -> list[Row]:
    rows: list[Row] = []
    for streams in (64, 256):
        ours: list[float] = []
        naive: list[float] = []
        for _ in range(ROUNDS):
            async with parts(rate=RATE) as running:
                ours.append(await _ours(running, streams))
                naive.append(await _naive(running, streams))
        how = f"{streams} streams at {RATE} chunks/s, {ROUNDS} rounds of {SECONDS:g} s; peer: SDK + XADD + PUBLISH"
        rows.append(Row("worker CPU per delta", statistics.median(ours), "µs", statistics.median(naive), how))
    return rows


async def _per_delta(running: Parts, pid: int) -> float:
    """By the chunks that the provider really got rid of: a worker that does not keep up takes fewer."""
    await asyncio.sleep(1.0)  # every stream is under way
    sent, spent = await _chunks_sent(running), cpu_seconds(pid)
    await asyncio.sleep(SECONDS)
    spent = cpu_seconds(pid) - spent
    return spent / (await _chunks_sent(running) - sent) * 1e6


async def _chunks_sent(running: Parts) -> int:
    journal_url = running.provider_url.removesuffix("/v1") + "/requests"
    async with aiohttp.ClientSession() as session, session.get(journal_url) as answer:
        journal = await answer.json()
    return sum(request["chunks"] for request in journal)


async def _ours(running: Parts, streams: int) -> float:
    worker, _ = await running.child("worker", DELTAFAN_CONCURRENCY=str(streams))
    async with AsyncQueue(running.redis_url) as queue:
        jobs = [await queue.enqueue(model="m", prompt=str(n)) for n in range(streams)]
        figure = await _per_delta(running, worker.pid)
        await asyncio.gather(*(job.cancel() for job in jobs))
    await worker.__aexit__(None, None, None)
    return figure


async def _naive(running: Parts, streams: int) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.naive", str(streams)),
        env=dict(os.environ) | running.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        return await _per_delta(running, process.pid)
    finally:
        process.kill()
        await process.wait()
        async with redis.asyncio.Redis.from_url(running.redis_url) as server:
            await server.flushall()
