"""`GET /v1/stats`: the numbers of the dashboard, once as JSON, or as a stream with a sample every second.

A tenant's numbers are sampled once for all who look at them, and not at all when nobody does. A viewer that does not
keep up misses samples, and owes no more than one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiohttp import web

from deltafan.broker import stats
from deltafan.broker.queue import AsyncQueue
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.relay.answers import answer
from deltafan.relay.client import STALL_SECONDS, watch_connection
from deltafan.relay.context import OUTAGE, STREAMS, queue_of
from deltafan.relay.outage import RelayOutage
from deltafan.relay.principal import require
from deltafan.relay.streams import Streams
from deltafan.sse import encode
from deltafan.wire import dumps

INTERVAL = 1.0
"""Seconds between two samples."""
RECENT = 200
"""Jobs, the newest, that latencies and rates are taken from."""
LISTED = 50
"""Jobs, the newest, that a sample lists."""
WINDOW_MS = 10_000
"""What a rate looks back on."""
LATENCY_WINDOW_MS = 60_000
"""What a latency looks back on: jobs that ended in it."""
MAX_QUEUES = 64
"""Queues of a tenant that a sampler remembers."""
_DEFAULT_QUEUE = "default"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a job's log was when it was last looked at."""

    attempt: int
    seq: int


class Sampler:
    """One tenant's numbers."""

    def __init__(self, queue: AsyncQueue, streams: Streams, outage: RelayOutage, *, shows_hosts: bool) -> None:
        self._queue = queue
        self._outage = outage
        self._shows_hosts = shows_hosts
        self._streams = streams
        self._queues: deque[str] = deque([_DEFAULT_QUEUE], maxlen=MAX_QUEUES)
        self._progress: dict[str, _Progress] = {}
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()
        self._sampling = asyncio.Lock()
        self._sampled = float("-inf")
        self._latest: dict[str, Any] = {}

    async def sample(self) -> dict[str, Any]:
        """The numbers of now, at most one interval old.

        :raises BrokerUnavailable: Redis cannot be reached.
        """
        clock = asyncio.get_running_loop().time
        async with self._sampling:
            elapsed = clock() - self._sampled
            if elapsed >= INTERVAL * 0.9:
                self._latest = await self._take(elapsed)
                self._sampled = clock()
                self._fresh.set()
                self._fresh = asyncio.Event()
            return self._latest

    @asynccontextmanager
    async def viewing(self) -> AsyncIterator[None]:
        """Samples are taken as long as somebody is in here."""
        self._viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"deltafan-stats-{self._queue.tenant}")
        try:
            yield
        finally:
            self._viewers -= 1
            if self._viewers == 0 and self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def next(self) -> dict[str, Any]:
        """The next sample that is taken."""
        await self._fresh.wait()
        return self._latest

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.sample()
            except (BrokerUnavailable, ConfigurationError) as error:
                self._outage.failed("numbers", error)
            else:
                self._outage.went_well("numbers")

    async def _take(self, elapsed: float) -> dict[str, Any]:
        redis, partitions = self._queue.connections.commands, self._queue.settings.partitions
        now = await stats.now_ms(redis)
        jobs = await stats.recent_jobs(redis, partitions, self._queue.tenant, RECENT)
        self._remember(jobs)
        queues = sorted(self._queues)
        ended = [job for job in jobs if job.ended is not None and now - job.ended <= LATENCY_WINDOW_MS]
        lately = [job for job in ended if now - (job.ended or 0) <= WINDOW_MS]
        created = await stats.created_since(redis, partitions, self._queue.tenant, now - WINDOW_MS)
        return {
            "v": 1,
            "time": now,
            "queues": [asdict(depth) for depth in await stats.queue_depths(redis, partitions, queues)],
            "workers": [self._worker(beat) for beat in await stats.worker_beats(redis, queues)],
            "streams": asdict(self._streams.statistics()),
            "rates": {
                "created_per_second": round(created * 1000 / WINDOW_MS, 2),
                "ended_per_second": round(len(lately) * 1000 / WINDOW_MS, 2),
                "tokens_per_second": round(sum(job.completion_tokens or 0 for job in lately) * 1000 / WINDOW_MS, 1),
                "events_per_second": self._events_per_second(jobs, elapsed),
            },
            "latency": {
                "first_token": _quantiles(job.timings.get("first_token") for job in ended),
                "total": _quantiles(job.timings.get("total") for job in ended),
            },
            "jobs": [asdict(job) for job in jobs[:LISTED]],
        }

    def _worker(self, beat: stats.WorkerBeat) -> dict[str, Any]:
        """On one's own machine, which process it is; else how busy, for the machines are the operator's."""
        return asdict(beat) if self._shows_hosts else {"running": beat.running}

    def _remember(self, jobs: list[stats.RecentJob]) -> None:
        """Which queues there are is known by the tenant's jobs: another tenant's are none of its business."""
        for name in dict.fromkeys(job.queue for job in jobs):
            if name not in self._queues:
                self._queues.append(name)

    def _events_per_second(self, jobs: list[stats.RecentJob], elapsed: float) -> float | None:
        """By how much the logs have grown since the last look; `None` without one."""
        before, self._progress = self._progress, {job.id: _Progress(job.attempt, job.seq) for job in jobs}
        if elapsed > INTERVAL * 10:
            return None
        grown = 0
        for job in jobs:
            seen = before.get(job.id, _Progress(0, -1))
            grown += job.seq - (seen.seq if seen.attempt == job.attempt else -1)
        return round(max(0, grown) / elapsed, 1)


def _quantiles(milliseconds: Iterable[float | None]) -> dict[str, float | int | None]:
    """The middle, and what one job in twenty exceeds."""
    known = sorted(value for value in milliseconds if value is not None)
    if not known:
        return {"p50": None, "p95": None, "count": 0}
    return {
        "p50": known[len(known) // 2],
        "p95": known[min(len(known) - 1, len(known) * 95 // 100)],
        "count": len(known),
    }


class Samplers:
    """The samplers of a relay, by tenant.

    :param shows_hosts: tell on which machine and in which process workers run.
    """

    def __init__(self, *, shows_hosts: bool) -> None:
        self._shows_hosts = shows_hosts
        self._by_tenant: dict[str, Sampler] = {}

    def of(self, request: web.Request) -> Sampler:
        """That of the request's tenant. There are as many as tenants with keys."""
        queue = queue_of(request)
        if queue.tenant not in self._by_tenant:
            app = request.app
            self._by_tenant[queue.tenant] = Sampler(queue, app[STREAMS], app[OUTAGE], shows_hosts=self._shows_hosts)
        return self._by_tenant[queue.tenant]


SAMPLERS: Final = web.AppKey("samplers", Samplers)


async def statistics(request: web.Request) -> web.StreamResponse:
    require(request, "admin", all_jobs=True)
    sampler = request.app[SAMPLERS].of(request)
    first = await sampler.sample()  # before the first byte: a failure has an answer of its own
    if "text/event-stream" not in request.headers.get("Accept", "").lower():
        return answer(first)
    with request.app[STREAMS].place():
        return await _stream(request, sampler, first)


async def _stream(request: web.Request, sampler: Sampler, sample: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    response.force_close()
    async with sampler.viewing():
        await response.prepare(request)
        if request.transport is not None:
            watch_connection(request.transport, INTERVAL)
        try:
            while not request.app[STREAMS].draining:
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(encode(dumps(sample), event="stats"))
                sample = await sampler.next()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
    return response
