"""`deltafan.Queue`: the same queue for code without an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltafan import AsyncQueue, JobNotFound, Queue, TextDelta, ValidationError
from deltafan.devserver.provider import Provider
from tests.conftest import StartWorker
from tests.e2e.cli_kit import environment
from tests.oracle import check_whole


async def test_a_thread_enqueues_follows_and_gets_the_result(
    redis_url: str, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()

    def work() -> None:
        with Queue(redis_url) as queue:
            job = queue.enqueue(model="gpt-5", prompt="hello")
            check_whole(job.events(), provider.requests[-1].text if provider.requests else None)
            assert job.result(timeout=10).text == provider.requests[-1].text
            assert job.status().state == "done"
            assert queue.jobs().jobs[0].id == job.id
            assert queue.job(job.id).cancel().cancelled is False

    await asyncio.to_thread(work)


async def test_many_threads_share_one_queue(redis_url: str, start_worker: StartWorker) -> None:
    await start_worker()
    loop = asyncio.get_running_loop()
    # Threads of their own: the worker needs some of the loop's.
    with Queue(redis_url) as queue, ThreadPoolExecutor(8) as threads:

        def work() -> str:
            return queue.enqueue(model="m", prompt="same").result(timeout=20).text

        texts = await asyncio.gather(*(loop.run_in_executor(threads, work) for _ in range(8)))
        assert len(set(texts)) == 1
        assert sum(t.name == "deltafan-portal" for t in threading.enumerate()) == 1


async def test_leaving_the_loop_early_unsubscribes_at_once(redis_url: str, start_worker: StartWorker) -> None:
    await start_worker()

    def work(queue: Queue) -> int:
        job = queue.enqueue(model="m", prompt="x", params={"metadata": {"fault": "stall=2"}})
        events = job.events()
        for event in events:
            if isinstance(event, TextDelta):
                break
        events.close()
        job.cancel()
        return len(queue._inner()._hub.feeds)  # type: ignore[union-attr]

    with Queue(redis_url) as queue:
        assert await asyncio.to_thread(work, queue) == 0


def test_it_works_in_the_thread_of_a_running_loop(redis_url: str) -> None:
    async def main() -> str:
        with Queue(redis_url) as queue:
            return queue.enqueue(model="m", prompt="x").status().state

    assert asyncio.run(main()) == "queued"


def test_errors_pass_as_they_are(redis_url: str) -> None:
    with Queue(redis_url) as queue:
        with pytest.raises(JobNotFound):
            queue.job("0-nobody").status()
        with pytest.raises(ValidationError, match="max_attempts"):
            queue.enqueue(model="m", prompt="x", max_attempts=0)
        job = queue.enqueue(model="m", prompt="x")
        with pytest.raises(TimeoutError):
            job.result(timeout=0.05)


FORKED = """
import os, sys
from deltafan import Queue
queue = Queue()
first = queue.enqueue(model="m", prompt="x")
pid = os.fork()
if pid == 0:
    second = queue.enqueue(model="m", prompt="x")
    assert first.status().state == second.status().state == "queued"
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert len(queue.jobs().jobs) == 2
print("ok")
"""


def test_a_forked_child_connects_anew_and_the_end_is_silent(redis_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", FORKED],
        env=environment(REDIS_URL=redis_url),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


async def test_without_a_url_the_environment_serves(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DELTAFAN_MAX_BYTES", "2048")
    async with AsyncQueue() as queue:
        assert queue.settings.url == redis_url
        with pytest.raises(ValidationError, match="at most 2,048"):
            await queue.enqueue(model="m", prompt="x" * 3000)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    async with AsyncQueue(redis_url) as queue:
        await queue.enqueue(model="m", prompt="x" * 3000)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, deltafan; print([m for m in ('redis', 'openai', 'pydantic', 'aiohttp') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
