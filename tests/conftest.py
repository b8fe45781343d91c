"""Real parts for every test: a Valkey (or Redis) of its own, scripted providers, workers in this loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis
from hypothesis import HealthCheck, settings

from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, running
from deltafan.devserver.pusher import PusherEmulator
from deltafan.devserver.pusher import running as pusher_running
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.engine.engine import Engine
from deltafan.engine.services import Services
from deltafan.llm import LLMSettings, ProviderSettings, Retrying
from deltafan.llm.client import OpenAICompletions
from deltafan.settings import RedisSettings, WorkerSettings
from tests.e2e.relay_kit import HandWorker, hand_worker

# Timing never decides a test: a busy machine is slow, not wrong.
settings.register_profile("deltafan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deltafan")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[EmbeddedValkey]:
    """One server a test process. `DELTAFAN_TEST_REDIS` names another binary, such as Debian's redis-server."""
    binary = os.environ.get("DELTAFAN_TEST_REDIS")
    async with EmbeddedValkey(binary=Path(binary) if binary else None) as embedded:
        yield embedded


@pytest.fixture
def redis_url(server: EmbeddedValkey) -> str:
    """The URL of an empty server."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return server.url


@pytest.fixture
def redis_settings(redis_url: str) -> RedisSettings:
    return RedisSettings(url=redis_url, command_timeout=5.0, probe_interval=2.0)


@pytest_asyncio.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[AsyncQueue]:
    async with AsyncQueue(redis_settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running(Script()) as opened:
        yield opened


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[PusherEmulator]:
    async with pusher_running() as opened:
        yield opened


@pytest_asyncio.fixture
async def worker(redis_settings: RedisSettings) -> AsyncIterator[HandWorker]:
    """A worker that the test drives by hand."""
    async with hand_worker(redis_settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class RunningWorker:
    """A worker in this event loop, and how to end it."""

    def __init__(self, engine: Engine, task: asyncio.Task[None], stop: asyncio.Event, hurry: asyncio.Event) -> None:
        self.engine = engine
        self.task = task
        self.stop = stop
        self.hurry = hurry

    async def drain(self) -> None:
        self.stop.set()
        await self.task

    async def vanish(self) -> None:
        """Stop dead, as after a crash: no hand-over, no last word. The heartbeat runs out by itself."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


StartWorker = Callable[..., Awaitable[RunningWorker]]


def test_settings(**changes: Any) -> WorkerSettings:
    """A worker that reacts within a test's patience."""
    quick: dict[str, Any] = {"lease": 1.0, "reap_interval": 0.2, "backoff": 0.02, "backoff_max": 0.1, "drain": 5.0}
    return WorkerSettings(**(quick | changes))


test_settings.__test__ = False  # type: ignore[attr-defined]


@asynccontextmanager
async def completions_of(provider: Provider, **changes: Any) -> AsyncIterator[tuple[Retrying, LLMSettings]]:
    local = ProviderSettings(base_url=provider.base_url, api_key="sk-test-0123456789abcdef")
    settings = LLMSettings(providers={"openai": local, "vllm": local})
    async with OpenAICompletions(settings) as client:
        yield Retrying(client, **({"backoff": 0.01} | changes)), settings


@pytest_asyncio.fixture
async def start_worker(redis_settings: RedisSettings, provider: Provider) -> AsyncIterator[StartWorker]:
    """Start workers; those that still run at the end of the test are drained at once."""
    started: list[RunningWorker] = []
    async with AsyncExitStack() as stack:

        async def start(provider: Provider = provider, services: dict[str, Any] | None = None, **changes: Any) -> Any:
            completions, llm = await stack.enter_async_context(completions_of(provider))
            connections = await stack.enter_async_context(Connections(redis_settings))
            made = Services(
                **({"completions": completions, "llm": llm} | {"settings": test_settings(**changes)} | (services or {}))
            )
            stop, hurry, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
            engine = Engine(made, connections)
            task = asyncio.create_task(engine.run(stop, hurry, ready.set))
            started.append(RunningWorker(engine, task, stop, hurry))
            await asyncio.wait({task, asyncio.create_task(ready.wait())}, return_when="FIRST_COMPLETED")
            return started[-1]

        try:
            yield start
        finally:
            for worker in started:
                worker.hurry.set()
                worker.stop.set()
            await asyncio.gather(*(worker.task for worker in started), return_exceptions=True)
