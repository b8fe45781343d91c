"""`POST /dev/kill-worker`: kills the worker of a running job, and nothing and nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import aiohttp
import pytest

from deltafan.broker import upkeep
from deltafan.broker.queue import AsyncQueue
from deltafan.settings import RedisSettings, TokenSettings
from tests.e2e.relay_kit import SPEC, HandWorker, Work, hand_worker, running_relay

TOKENS = TokenSettings(token_keys=("k1=" + "s" * 40,))
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


async def kill(http: aiohttp.ClientSession, url: str, job: Any, **headers: str) -> tuple[int, Any]:
    async with http.post(f"{url}/dev/kill-worker", json={"job": job}, headers=headers) as answer:
        body = await answer.json()
        return answer.status, body.get("error", body)


async def running_job(queue: AsyncQueue, worker: HandWorker, pid: int, host: str | None = None) -> Work:
    """A job that a worker runs whose heartbeat names this process."""
    await queue.enqueue(SPEC)
    work = await worker.take()
    details = {"pid": pid, "host": socket.gethostname() if host is None else host, "running": 1}
    await upkeep.beat(queue.connections.commands, 1, worker.claims.worker, 30, details)
    return work


async def test_the_process_of_a_running_job_is_killed(
    queue: AsyncQueue, redis_settings: RedisSettings, http: aiohttp.ClientSession
) -> None:
    process = await asyncio.create_subprocess_exec(*SLEEP)
    try:
        async with (
            hand_worker(redis_settings, f"host-{process.pid}-abcd") as worker,
            running_relay(queue, dev_tools=True) as relay,
        ):
            work = await running_job(queue, worker, process.pid)
            status, said = await kill(http, relay.url, work.id)
            assert (status, said["pid"]) == (200, process.pid)
            assert await process.wait() == -9
            assert (await kill(http, relay.url, work.id))[1]["code"] == "not_running"
            await work.finish()
            status, said = await kill(http, relay.url, work.id)
            assert (status, said["message"]) == (409, f"job {work.id} is done: no worker runs it now")
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize(
    ("name", "pid", "host"),
    [
        ("host-{pid}-abcd", "relay", None),
        ("host-{pid}-abcd", "relay's parent", None),
        ("host-{pid}-abcd", 1, None),
        ("host-{pid}-abcd", -1, None),
        ("host-{pid}-abcd", 0, None),
        ("somebody", 4_000_000, None),
        ("host-{pid}-abcd", 4_000_000, "elsewhere"),
    ],
)
async def test_a_heartbeat_cannot_name_what_is_no_worker_of_this_machine(
    queue: AsyncQueue,
    redis_settings: RedisSettings,
    http: aiohttp.ClientSession,
    name: str,
    pid: int | str,
    host: str | None,
) -> None:
    pid = {"relay": os.getpid(), "relay's parent": os.getppid()}.get(str(pid), pid)
    assert isinstance(pid, int)
    async with (
        hand_worker(redis_settings, name.format(pid=pid)) as worker,
        running_relay(queue, dev_tools=True) as relay,
    ):
        work = await running_job(queue, worker, pid, host)
        status, said = await kill(http, relay.url, work.id)
        assert (status, said["code"]) == (409, "not_here")


async def test_wrong_requests_are_told_why(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, dev_tools=True) as relay:
        status, said = await kill(http, relay.url, job.id)
        assert (status, said["message"]) == (409, f"job {job.id} is queued: no worker runs it now")
        assert (await kill(http, relay.url, "0-nobody"))[0] == 404
        status, said = await kill(http, relay.url, 7)
        assert (status, said["fields"][0]["field"]) == (422, "job")
        async with http.post(f"{relay.url}/dev/kill-worker", data=b"job=1") as answer:
            assert answer.status == 415


async def test_foreign_pages_and_holders_of_tokens_may_not(
    redis_settings: RedisSettings, http: aiohttp.ClientSession
) -> None:
    async with (
        AsyncQueue(redis_settings, tokens=TOKENS) as queue,
        running_relay(queue, tokens=TOKENS, dev_tools=True) as relay,
    ):
        job = await queue.enqueue(SPEC)
        assert (await kill(http, relay.url, job.id, Origin="https://evil.example"))[0] == 403
        token = queue.token(job, cancel=True)
        assert (await kill(http, relay.url, job.id, Authorization=f"Bearer {token}"))[0] == 403


@pytest.mark.parametrize("settings", [{}, {"dev_tools": True, "api_keys": ("some-key-123",)}])
async def test_it_is_not_there_unless_it_is_switched_on_for_an_open_relay(
    queue: AsyncQueue, http: aiohttp.ClientSession, settings: dict[str, Any]
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, **settings) as relay:
        assert (await kill(http, relay.url, job.id, Authorization="Bearer some-key-123"))[0] in (401, 404)
