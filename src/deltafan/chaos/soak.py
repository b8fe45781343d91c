"""A random soak: jobs and faults by a seed's schedule, then peace, and then everything must have come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sized
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from deltafan.chaos import audit, servers
from deltafan.chaos.deployment import Deployment, deployed
from deltafan.chaos.disturbances import Disturbances
from deltafan.chaos.faults import Injector
from deltafan.chaos.load import Load
from deltafan.chaos.report import Report
from deltafan.chaos.rig import Rig
from deltafan.chaos.schedule import VALKEY, fault_plan
from deltafan.chaos.workload import PlannedJob, workload

SETTLE: Final = 90.0
"""Seconds in which every job must have ended when the last fault has been healed: the longest job, run again from its
start, behind all others."""
AT_ONCE: Final = 80
"""Jobs under way at the most; more wait to be enqueued. Two cores can follow so many."""
LEFT_SECONDS: Final = 10.0
"""How long Redis may take to see that connections have been closed, and workers to acknowledge."""
_TICK: Final = 0.25


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What to run."""

    minutes: float
    seed: int
    workers: int = 3
    relays: int = 2
    rate: float = 3.0
    """Jobs a second, in the mean."""
    server: str = VALKEY
    """The kind of Redis."""

    @property
    def command(self) -> str:
        """What repeats it."""
        default = SoakPlan(self.minutes, self.seed)
        options = {"workers": self.workers, "relays": self.relays, "rate": self.rate, "redis": self.server}
        usual = {"workers": default.workers, "relays": default.relays, "rate": default.rate, "redis": default.server}
        more = "".join(f" --{name} {value}" for name, value in options.items() if value != usual[name])
        return f"deltafan chaos --minutes {self.minutes:g} --seed {self.seed}{more}"

    @property
    def setup(self) -> str:
        return (
            f"{self.workers} workers and {self.relays} relays as processes, {servers.WORDS[self.server]}, "
            f"a scripted provider, {self.rate:g} jobs a second"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is."""

    phase: str
    seconds: float
    report: Report
    running: int


class _Due(Protocol):
    @property
    def at(self) -> float: ...


_D = TypeVar("_D", bound=_Due)


class Soak:
    """One run.

    :param folder: for the processes' logs.
    :param progress: told several times a second how far it is.
    """

    def __init__(self, plan: SoakPlan, folder: Path, progress: Callable[[Progress], None]) -> None:
        self.report = Report(plan.seed, plan.minutes, plan.setup, plan.command)
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._disturbances = Disturbances()
        self._load: Load
        self._under_way: Sized = ()
        self._phase = "starting"
        self._room = asyncio.Semaphore(AT_ONCE)
        self._began = 0.0

    async def run(self, stop: asyncio.Event) -> Report:
        """Run it to its end, or until `stop` is set: then nothing more is judged.

        :raises ChildFailed: a process does not start at the beginning.
        :raises ConfigurationError: there is no embedded server.
        :raises BrokerUnavailable: the embedded server does not start.
        """
        before = asyncio.all_tasks()
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        stopping = asyncio.create_task(self._say_stopping(stop))
        before.add(stopping)
        try:
            await self._run(stop, before)
        finally:
            await _cancelled([stopping])
        self.report.seconds = loop.time() - self._began
        return self.report

    async def _run(self, stop: asyncio.Event, before: set[asyncio.Task[Any]]) -> None:
        async with servers.serving(self._plan.server) as server:
            async with AsyncExitStack() as opened:
                plan = self._plan
                partitions = servers.PARTITIONS[plan.server]
                rig = await opened.enter_async_context(Rig.opened(self._folder, server, partitions=partitions))
                started = deployed(rig, plan.workers, plan.relays, lambda who, what: self._wrong(who, "it", what))
                deployment = await opened.enter_async_context(started)
                self._load = Load(deployment, self._disturbances, self.report)
                self._under_way = self._load.running
                telling = asyncio.create_task(self._tell())
                try:
                    await self._unless(stop, self._through(deployment))
                finally:
                    telling.cancel()
                    await asyncio.gather(telling, return_exceptions=True)
            if not self.report.interrupted:
                await self._nothing_left(server, before)

    async def _unless(self, stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        if stop.is_set():
            work.close()
            self.report.interrupted = True
            return
        working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return
            self.report.interrupted = True
            self.report.unjudged = len(self._load.running)
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _through(self, deployment: Deployment) -> None:
        watching = [asyncio.create_task(deployment.watch(place)) for place in deployment.places]
        try:
            jobs, faults = await self._storm(deployment)
            await self._calm(jobs, faults)
        finally:
            await _cancelled(watching)
        self._phase = "ending"
        await self._audit(deployment)
        await deployment.end()

    async def _storm(self, deployment: Deployment) -> tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]:
        """Jobs and faults, as long as asked for. Gives those that are still under way."""
        plan = self._plan
        injector = Injector(deployment, self._disturbances, self._load.struck)
        self.report.faults = injector.done
        jobs: set[asyncio.Task[None]] = set()
        faults: set[asyncio.Task[None]] = set()
        self._phase = "breaking things"

        async def enqueue() -> None:
            async for job in self._due(workload(plan.seed, plan.rate)):
                _start(jobs, self._job(job))

        async def strike() -> None:
            async for fault in self._due(fault_plan(plan.seed, plan.workers, plan.relays, plan.server)):
                _start(faults, injector.inflict(fault))
                self.report.faults_skipped = injector.skipped

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(enqueue())
                group.create_task(strike())
        except BaseException:
            await _cancelled([*jobs, *faults])
            raise
        return jobs, faults

    async def _due(self, planned: Iterator[_D]) -> AsyncIterator[_D]:
        """What is planned, each at its time, until the time is over."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for item in planned:
            if item.at >= self._plan.minutes * 60:
                return
            await asyncio.sleep(start + item.at - loop.time())
            yield item

    async def _job(self, planned: PlannedJob) -> None:
        async with self._room:
            try:
                await self._load.run(planned)
            except Exception as error:
                self._wrong(f"job {planned.number} ({planned.kind})", "its client", f"got {error!r:.1000}")

    async def _calm(self, jobs: set[asyncio.Task[None]], faults: set[asyncio.Task[None]]) -> None:
        """Heal everything, and wait for every job to end."""
        try:
            self._phase = "healing"
            for fault in await asyncio.gather(*faults, return_exceptions=True):
                if isinstance(fault, BaseException):
                    raise fault
            self._phase = "waiting for jobs"
            if jobs:
                await asyncio.wait(jobs, timeout=SETTLE)
            for running in self._load.running.values():
                waiting = [name for name, task in running.job.tasks.items() if not task.done()]
                who = ", ".join(f"{name} since {running.job.seen[name].last}" for name in waiting) or "its verdict"
                rule = f"has not come to its end {SETTLE:g} s after the last fault was healed"
                self._wrong(f"{running.job.id} ({running.planned.kind})", who, rule)
        finally:
            await _cancelled([*jobs, *faults])

    async def _audit(self, deployment: Deployment) -> None:
        connections = deployment.rig.queue.connections
        loop = asyncio.get_running_loop()
        until = loop.time() + LEFT_SECONDS
        while True:
            found = await audit.queue_problems(connections)
            if not found or loop.time() > until:
                break
            await asyncio.sleep(_TICK)
        for problem in found + await audit.expiry_problems(connections):
            self._wrong("Redis", "left behind", problem)

    async def _nothing_left(self, server: servers.Server, before: set[asyncio.Task[Any]]) -> None:
        """When everything of ours has ended: are connections open, or tasks running?"""
        for node in servers.nodes(server):
            for problem in await audit.connection_problems(node.url, LEFT_SECONDS):
                self._wrong("Redis", "left behind", problem)
        for task in asyncio.all_tasks() - before:
            self._wrong("this process", "left behind", f"the task {task!r:.500} still runs")

    def _wrong(self, subject: str, follower: str, rule: str) -> None:
        self._load.violation(subject, follower, rule)

    async def _say_stopping(self, stop: asyncio.Event) -> None:
        """Whatever it does at that moment: ending everything takes some seconds, too."""
        await stop.wait()
        self._phase = "stopping"
        self._tell_once()

    async def _tell(self) -> None:
        while self._phase != "stopping":
            self._tell_once()
            await asyncio.sleep(_TICK)

    def _tell_once(self) -> None:
        self.report.seconds = asyncio.get_running_loop().time() - self._began
        self._progress(Progress(self._phase, self.report.seconds, self.report, len(self._under_way)))


def _start(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(lambda done: tasks.discard(done) if not done.cancelled() and not done.exception() else None)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
