"""A worker's models by its settings: cache, limits, context check. Real processes, as an operator starts them."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider
from tests.e2e.cli_kit import environment, line, running_cli

Worker = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def worker(redis_url: str, provider: Provider) -> Worker:
    @asynccontextmanager
    async def run(**settings: str) -> AsyncIterator[None]:
        env = {"REDIS_URL": redis_url, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-test-0123456789"}
        async with running_cli("worker", "--json", **env, **settings) as process:
            assert (await line(process))["ready"]
            yield

    return run


async def test_equal_prompts_ask_the_provider_once_and_no_tenant_gets_anothers_answer(
    queue: AsyncQueue, worker: Worker, provider: Provider
) -> None:
    async with worker(DELTAFAN_CACHE_BACKEND="redis"):
        first, again, other = [
            await (await tenant.enqueue(model="gpt-5-mini", prompt="Hello")).result(20)
            for tenant in (queue, queue, queue.for_tenant("acme"))
        ]
    assert first.text == again.text
    assert first.usage is not None
    assert again.usage is not None
    assert (first.usage.cost_usd or 0) > 0
    assert again.usage.cost_usd == 0
    assert other.usage is not None
    assert (other.usage.cost_usd or 0) > 0
    assert len(provider.requests) == 2


async def test_a_model_is_asked_no_oftener_than_its_limit_over_all_workers(
    queue: AsyncQueue, worker: Worker, provider: Provider
) -> None:
    settings = {"DELTAFAN_LIMITS": "shared", "DELTAFAN_REQUESTS_PER_MINUTE": "2", "DELTAFAN_LIMIT_WAIT": "0.2"}
    async with worker(**settings, DELTAFAN_MAX_ATTEMPTS="1"), worker(**settings, DELTAFAN_MAX_ATTEMPTS="1"):
        jobs = [await queue.enqueue(model="gpt-5-mini", prompt=f"Hello {n}") for n in range(5)]
        for job in jobs:
            async for _ in job.events():
                pass
        ended = [await job.status() for job in jobs]
    assert sorted(job.state for job in ended) == ["done", "done", "failed", "failed", "failed"]
    assert {job.error["code"] for job in ended if job.error} == {"rate_limit"}
    assert len(provider.requests) == 2


ROUTES = """
import sys
from deltafan import Deployment, run_worker
from deltafan.llm.router import Router

def routes(models):
    broken = Deployment("nosuch/broken", "fast", weight=1000)
    return Router([broken, Deployment("openai/gpt-5-mini", "fast")], completions=models, unlisted=True)

sys.exit(run_worker(routes=routes, ready=lambda name: print("ready", flush=True)))
"""


async def test_an_operators_routes_give_jobs_names_of_their_own(
    queue: AsyncQueue, redis_url: str, provider: Provider, tmp_path: Path
) -> None:
    """Behind the name are two deployments, of which the first cannot answer; any other model is asked as ever."""
    (tmp_path / "main.py").write_text(ROUTES)
    env = {"REDIS_URL": redis_url, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-test-0123456789"}
    env |= {"NOSUCH_BASE_URL": "http://127.0.0.1:1/v1", "DELTAFAN_PROVIDERS": "nosuch"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "main.py"), stdout=PIPE, env=environment(**env)
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        results = [await (await queue.enqueue(model=m, prompt="Hello")).result(30) for m in ("fast", "gpt-4o")]
    finally:
        process.terminate()
        await process.communicate()
    assert all(result.text for result in results)
    assert [request.model for request in provider.requests] == ["gpt-5-mini", "gpt-4o"]
    assert process.returncode == 0, "drained"


async def test_a_prompt_that_is_too_long_for_its_model_is_never_sent(
    queue: AsyncQueue, worker: Worker, provider: Provider
) -> None:
    async with worker():
        job = await queue.enqueue(model="gpt-4o", prompt="word " * 200_000)
        async for _ in job.events():
            pass
        error = (await job.status()).error
    assert error is not None
    assert error["code"] == "context_length"
    assert "128,000" in error["message"] or "128000" in error["message"]
    assert provider.requests == []
