"""A deployment on loopback: Redis, the scripted provider, workers and relays as processes, and followers of every kind.

async with Rig.opened(folder) as rig:
    worker, relay = await rig.worker(), await rig.relay()
    job = await rig.enqueue(rate=50)
    await job.follow(relay)
    worker.kill()
    await rig.worker()
    await rig.check()
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from redis.asyncio import Redis

from deltafan.broker.keys import partition
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.chaos import audit, oracle
from deltafan.chaos.followers import Follow, Seen, by_channel, by_client, by_sse
from deltafan.chaos.program import Program, running
from deltafan.chaos.sent import sent_problems
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.provider import Provider, Script
from deltafan.devserver.provider import running as provider_running
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.devserver.sentinel import EmbeddedSentinel
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.events import Event
from deltafan.job import partition_of
from deltafan.settings import RedisSettings

QUICK: Final[dict[str, object]] = {
    "lease": 1.0,
    "reap_interval": 0.25,
    "backoff": 0.05,
    "backoff_max": 0.2,
    "drain": 5.0,
    "command_timeout": 2.0,
    "probe_interval": 0.5,
    "heartbeat": 0.5,
}
"""Settings of processes that react within a test's patience. A worker is lost within lease plus reap interval."""
TEXT: Final = "Ζωή, 日本語, naïve — and a flag 🏳️‍🌈, a family 👩‍👩‍👧. "
"""Text of one, two, three and four bytes a character, with marks that must not be torn."""


class Backend(Protocol):
    """A Redis of our own, of whatever kind."""

    @property
    def url(self) -> str: ...


@dataclass(eq=False)
class Job:
    """A job of the rig, what its model will say, and what its followers have seen."""

    id: str
    handle: AsyncJob
    key: str
    """By which the provider tells its requests from others'."""
    text: str
    rig: Rig
    seen: dict[str, Seen] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, name: str, follow: Follow) -> Seen:
        """Have one more follower, until the job's end."""
        seen = self.seen[name] = Seen(f"{self.id} by {name}")
        self.tasks[name] = asyncio.create_task(_run(follow, seen), name=f"follower-{name}")
        return seen

    async def follow(self, *relays: Program, name: str = "") -> None:
        """Have a follower of each kind; returns when each has seen the job's beginning, if it has begun.

        :param relays: where the SSE follower connects, the next one after each disconnection; none: no such follower.
        """
        if relays:
            self.start(f"sse{name}", by_sse(self.rig.http, [relay.url for relay in relays], self.id))
        self.start(f"client{name}", by_client(self.rig.queue, self.id))
        sharded = isinstance(self.rig.backend, EmbeddedCluster)
        keys = partition(self.id).of_job(self.id)
        self.start(f"channel{name}", by_channel(partial(self.rig.server_of, self.id), keys, sharded=sharded))

    async def until(self, check: Callable[[Seen], bool], timeout: float = 30.0) -> None:
        """Wait until every follower's transcript fulfils a check."""
        await asyncio.gather(*(seen.until(check, timeout) for seen in self.seen.values()))

    async def begun(self, events: int = 2) -> None:
        """Wait until every follower has seen so many events: `meta` and a token."""
        await self.until(lambda seen: len(seen.events) >= events)

    async def ended(self, timeout: float = 45.0) -> None:
        """Wait until every follower has come to its end.

        :raises TimeoutError: one has not; names it.
        """
        if self.tasks:
            await asyncio.wait(self.tasks.values(), timeout=timeout)
        for name, task in self.tasks.items():
            if not task.done():
                seen = self.seen[name]
                raise TimeoutError(f"{seen.follower} waits since {seen.last} ({len(seen.events)} events)")
            task.result()

    @property
    def requests(self) -> list[RequestRecord]:
        """What the provider was asked for it, oldest first: of every attempt, and of every turn of one with tools."""
        return [record for record in self.rig.provider.requests if oracle.asker(record) == self.key]

    async def log(self) -> list[Event]:
        """What Redis holds of it."""
        seen = Seen("log")
        await by_client(self.rig.queue, self.id)(seen)
        return seen.events


async def _run(follow: Follow, seen: Seen) -> None:
    try:
        await follow(seen)
    finally:
        seen.news.set()


class Rig:
    """Everything that a scenario needs. Open it with `Rig.opened`; nothing of it outlives that."""

    def __init__(
        self, opened: AsyncExitStack, folder: Path, backend: Backend, settings: RedisSettings, provider: Provider
    ) -> None:
        self.backend: Any = backend
        self.settings = settings
        self.provider = provider
        self.queue: AsyncQueue
        """Straight to Redis, with no proxy between."""
        self.redis: Redis | None = None
        """A plain client of a single Redis; `commands` serves every other kind as well."""
        self.http: aiohttp.ClientSession
        self.jobs: list[Job] = []
        self.programs: list[Program] = []
        self._starts: dict[Program, Callable[[], AbstractAsyncContextManager[Program]]] = {}
        self._opened = opened
        self._folder = folder
        self._numbers = itertools.count(1)

    @staticmethod
    @asynccontextmanager
    async def opened(
        folder: Path,
        backend: Backend | None = None,
        *,
        script: Script | None = None,
        partitions: int = 1,
    ) -> AsyncIterator[Rig]:
        """:param folder: for the processes' logs.
        :param backend: a Redis of yours; an embedded Valkey when left out.
        :param script: of the provider; a job's own text and pace go over it.
        """
        async with AsyncExitStack() as stack:
            if backend is None:
                backend = await stack.enter_async_context(EmbeddedValkey())
            provider = await stack.enter_async_context(provider_running(script or Script()))
            settings = RedisSettings(url=backend.url, partitions=partitions, command_timeout=2.0, probe_interval=0.5)
            rig = Rig(stack, folder, backend, settings, provider)
            rig.queue = await stack.enter_async_context(AsyncQueue(settings))
            rig.http = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0),  # followers must not wait for one another
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=5),
                )
            )
            if backend.url.startswith("redis://"):
                rig.redis = await stack.enter_async_context(Redis.from_url(backend.url, socket_timeout=2.0))
            try:
                yield rig
            finally:
                await rig._stop_followers()

    @property
    def commands(self) -> Redis:
        """A client of whatever Redis it is: each command goes where its key is."""
        return self.queue.connections.commands

    @asynccontextmanager
    async def server_of(self, job_id: str) -> AsyncIterator[Redis]:
        """A plain client of the server that has a job now.

        :raises BrokerUnavailable: nobody says which one it is.
        """
        if self.redis is not None:
            yield self.redis
        elif isinstance(self.backend, EmbeddedCluster):
            async with self.backend.client(await self.backend.owner_of(partition_of(job_id))) as client:
                yield client
        elif isinstance(self.backend, EmbeddedSentinel):
            async with self.backend.client(await self.backend.primary()) as client:
                yield client

    async def _stop_followers(self) -> None:
        tasks = [task for job in self.jobs for task in job.tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def worker(self, *, command: list[str] | None = None, **settings: object) -> Program:
        """Start a worker process with `QUICK` settings and these; returns when it takes jobs.

        :param command: an own program that calls `run_worker`, and prints a line of JSON when it is ready.
        """
        provider = await self._opened.enter_async_context(proxied(self.provider.base_url))
        address = provider.url(self.provider.base_url)
        more = {"VLLM_BASE_URL": address, "VLLM_API_KEY": "sk-scripted"}
        more |= {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "sk-scripted"}  # takes no prefill, as the other does
        return await self._start("worker", settings, more, provider, command)

    async def relay(self, **settings: object) -> Program:
        """Start a relay process; returns when it listens."""
        return await self._start("relay", {"port": 0, **settings}, {}, None, None)

    async def _start(
        self,
        kind: str,
        settings: Mapping[str, object],
        more: Mapping[str, str],
        provider: Proxy | None,
        command: list[str] | None,
    ) -> Program:
        redis: Proxy | None = None
        url = self.backend.url
        if url.startswith("redis://"):
            redis = await self._opened.enter_async_context(proxied(url))
            url = redis.url(url)
        name = f"{kind}{next(self._numbers)}"
        environment = {f"DELTAFAN_{key.upper()}": str(value) for key, value in {**QUICK, **settings}.items()}
        environment |= {"REDIS_URL": url, "DELTAFAN_PARTITIONS": str(self.settings.partitions), **more}
        log = self._folder / f"{name}.log"
        start = partial(running, name, [kind], environment, log, redis=redis, provider=provider, command=command)
        return await self._run(start)

    async def again(self, program: Program) -> Program:
        """Start a program that has ended once more, with its settings, behind its proxies.

        :raises ChildFailed: it does not start; its log says why.
        """
        return await self._run(self._starts[program])

    async def _run(self, start: Callable[[], AbstractAsyncContextManager[Program]]) -> Program:
        program = await self._opened.enter_async_context(start())
        self._starts[program] = start
        self.programs.append(program)
        return program

    async def enqueue(
        self, text: str = TEXT * 4, *, rate: float = 0.0, scripted: Mapping[str, str] | None = None, **fields: Any
    ) -> Job:
        """Enqueue a job whose model says a known text.

        :param rate: chunks of four characters a second; 0 is as fast as it can.
        :param scripted: further options of the scripted provider for this job alone, such as `{"fault": "cut=3*1"}`.
        :param fields: of the job's spec.
        """
        key = f"job-{next(self._numbers)}"
        options = {"key": key, "text": text, "rate": f"{rate:g}", **(scripted or {})}
        params = {**fields.pop("params", {}), "metadata": options}
        handle = await self.queue.enqueue({"model": "vllm/scripted", "prompt": key, "params": params, **fields})
        job = Job(handle.id, handle, key, text, self)
        self.jobs.append(job)
        return job

    async def problems(
        self, *jobs: Job, whole: bool = True, settled: bool = True, overlaps: bool = False, forgot: bool = False
    ) -> list[str]:
        """Wait for jobs (all, when none is named) to end, and say what is wrong with them.

        :param whole: the final attempt's text is all of what the model was to say.
        :param settled: all jobs of the rig have ended: look for what was left behind, too.
        :param overlaps: a process stood still or was cut off from Redis past its lease: the provider may have been
            asked for a job again while its first answer still ran.
        :param forgot: Redis lost its latest writes, which followers had seen.
        """
        found: list[str] = []
        for job in jobs or self.jobs:
            await job.ended()
            found += await self._job_problems(job, whole, overlaps, forgot)
        if settled:
            found += await self._settled_problems()
        return found

    async def check(
        self, *jobs: Job, whole: bool = True, settled: bool = True, overlaps: bool = False, forgot: bool = False
    ) -> None:
        """As `problems`.

        :raises AssertionError: names each promise that was broken.
        """
        found = await self.problems(*jobs, whole=whole, settled=settled, overlaps=overlaps, forgot=forgot)
        if found:
            raise AssertionError("\n".join(found))

    async def _job_problems(self, job: Job, whole: bool, overlaps: bool, forgot: bool) -> list[str]:
        found: list[str] = []
        transcripts = {"log": await job.log(), **{name: seen.events for name, seen in job.seen.items()}}
        for name, events in transcripts.items():
            problems = oracle.problems_of(events, text=job.text if whole else None)
            found += [f"{job.id} by {name}: {problem}" for problem in problems]
        found += [f"{job.id}: {problem}" for problem in oracle.agreement_problems(transcripts, final_only=forgot)]
        forgotten = self.provider.journal.forgotten > 0
        sent = sent_problems(transcripts["log"], job.requests, overlaps=overlaps, forgotten=forgotten)
        found += [f"{job.id}: {problem}" for problem in sent]
        record = await audit.record_problems(self.queue.connections, job.id, oracle.transcript_of(transcripts["log"]))
        found += [f"{job.id}: {problem}" for problem in record]
        if not overlaps:
            found += [
                f"{job.id}: the provider was asked twice at once, for {overlap.seconds:.2f} s"
                for overlap in oracle.overlaps(job.requests)
            ]
        return found

    async def _settled_problems(self, patience: float = 10.0) -> list[str]:
        """What is still there when it should not be; a worker acknowledges a moment after the `done`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            found = await audit.queue_problems(self.queue.connections)
            if not found or loop.time() > until:
                return found + await audit.expiry_problems(self.queue.connections)
            await asyncio.sleep(0.05)


async def eventually(check: Callable[[], Awaitable[bool]], timeout: float = 20.0) -> None:
    """Wait for what announces itself nowhere, such as a count in Redis.

    :raises TimeoutError: it does not come to pass in time.
    """
    async with asyncio.timeout(timeout):
        while not await check():  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.02)
