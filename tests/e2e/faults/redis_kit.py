"""Workers and relays in the test's own process, for faults of Redis under which no process has to die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import ALL, Script
from deltafan.chaos.rig import Rig
from deltafan.chaos.servers import Server
from deltafan.devserver.proxy import Proxy, Watch, proxied
from deltafan.engine.engine import Engine
from deltafan.engine.services import Services
from deltafan.settings import RedisSettings
from deltafan.sinks.base import SinkFactory
from deltafan.telemetry.hooks import Signal
from tests.conftest import RunningWorker, completions_of, test_settings
from tests.e2e.faults.topologies_kit import on_all
from tests.e2e.relay_kit import Relay, running_relay


class Worker(RunningWorker):
    """A worker behind a proxy of its own, and what it has said."""

    redis: Proxy
    """Before a single Redis; before no other."""
    signals: list[Signal]


class Here:
    """Starts the parts of a rig in this process; each has a proxy between itself and Redis."""

    def __init__(self, rig: Rig, opened: AsyncExitStack) -> None:
        self.rig = rig
        self._opened = opened
        self._workers: list[Worker] = []

    async def worker(self, *, sinks: Mapping[str, SinkFactory] | None = None, **settings: Any) -> Worker:
        """A worker that takes jobs, with `test_settings` and these."""
        redis, proxy = await self._between()
        completions, llm = await self._opened.enter_async_context(completions_of(self.rig.provider))
        connections = await self._opened.enter_async_context(Connections(redis))
        signals: list[Signal] = []
        services = Services(
            completions=completions,
            llm=llm,
            settings=test_settings(**settings),
            sinks=sinks or {},
            hook=signals.append,
        )
        engine = Engine(services, connections)
        stop, hurry, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        worker = Worker(engine, asyncio.create_task(engine.run(stop, hurry, ready.set)), stop, hurry)
        worker.signals = signals
        if proxy is not None:
            worker.redis = proxy
        self._workers.append(worker)
        await ready.wait()
        return worker

    async def relay(self, **settings: Any) -> tuple[Relay, Proxy]:
        """The proxy is there where a single Redis is."""
        redis, proxy = await self._between()
        queue = await self._opened.enter_async_context(AsyncQueue(redis))
        relay = await self._opened.enter_async_context(running_relay(queue, **{"heartbeat": 0.5, **settings}))
        return relay, proxy  # type: ignore[return-value]

    async def _between(self) -> tuple[RedisSettings, Proxy | None]:
        """The way to Redis, by a proxy of its own; to a cluster, and to what sentinels name, it is direct."""
        url = self.rig.backend.url
        if not url.startswith("redis://"):
            return self.rig.settings, None
        proxy = await self._opened.enter_async_context(proxied(url))
        return self.rig.settings.model_copy(update={"url": proxy.url(url)}), proxy

    async def stop(self) -> None:
        for worker in self._workers:
            worker.hurry.set()
            worker.stop.set()
        await asyncio.gather(*(worker.task for worker in self._workers), return_exceptions=True)


@asynccontextmanager
async def here(rig: Rig) -> AsyncIterator[Here]:
    async with AsyncExitStack() as opened:
        parts = Here(rig, opened)
        try:
            yield parts
        finally:
            await parts.stop()


async def teach(rig: Rig) -> None:
    """Have the server know all scripts: else the first request for each only asks whether it does."""
    assert rig.redis is not None
    for script in ALL:
        await rig.redis.script_load(script.single.lua)


def runs(script: Script) -> Watch:
    """Knows the requests that run a script."""
    return lambda data: script.single.sha.encode() in data


async def calls(server: Server) -> int:
    """Commands that a Redis has run since it began."""

    async def by(redis: Redis) -> int:
        stats: Any = await redis.info("commandstats")
        return sum(int(stat["calls"]) for stat in stats.values())

    return sum(await on_all(server, by))


async def calls_in(server: Server, seconds: float) -> int:
    """Commands that a Redis runs in the next seconds."""
    before = await calls(server)
    await asyncio.sleep(seconds)
    return await calls(server) - before


def memory_of(process: int) -> int:
    """Bytes that it holds in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
