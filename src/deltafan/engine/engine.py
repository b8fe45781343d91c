"""One worker process: takes jobs up to its concurrency, runs them, keeps its lease, drains."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from deltafan.broker import upkeep
from deltafan.broker.claims import Claim, Claims, Ended
from deltafan.broker.connections import BLOCK, Connections
from deltafan.broker.intake import Intake, Taken
from deltafan.broker.keys import Partition
from deltafan.broker.startup import check_server
from deltafan.broker.subscriber import Subscriber
from deltafan.engine.flusher import Flusher
from deltafan.engine.housekeeping import Housekeeping
from deltafan.engine.late import deliver_late
from deltafan.engine.run import JobRun
from deltafan.engine.services import Services
from deltafan.engine.witness import Witness
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.lifeline import BEATS_PER_LEASE
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage

_RETRY = 0.5


def new_worker_id() -> str:
    """Host and process, for people; random bits, so that no two ever share a name."""
    host = "".join(c for c in socket.gethostname() if c.isalnum() or c in "-_")[:40] or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended: a cancel that comes just as an inner time limit strikes can get lost."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)


class Engine:
    """Runs jobs until it is told to stop. `run` opens and closes everything it needs."""

    def __init__(self, services: Services, connections: Connections, worker_id: str | None = None) -> None:
        self.worker = worker_id or new_worker_id()
        self._services = services
        self._settings = services.settings
        self._connections = connections
        self._partitions = connections.settings.partitions
        self._claims = Claims(connections.commands, self.worker, services.settings, services.retention, services.limits)
        self._intake = Intake(
            connections, self.worker, services.settings.queues, self._partitions, services.limits.max_bytes
        )
        self._outage = Outage(services.hook, {"worker": self.worker})
        self._flusher = Flusher(connections.appends, services.hook, self._outage)
        self._runs: dict[str, JobRun] = {}
        self._entries: set[tuple[str, str]] = set()  # entries of ours that are at work or on trial, by stream and entry
        self._begun: set[tuple[str, str]] = set()  # those whose attempt has been claimed, until they are acknowledged
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[Any]] = set()  # of those, which only wait for their sinks
        # Jobs that may be what kills workers run one at a time, so that one that does takes no other such job with it:
        # those that were only beside it come to their end.
        self._trial: asyncio.Task[None] | None = None
        self._trials: deque[Taken] = deque()
        self._held: list[Taken] = []  # taken beyond the concurrency; a wait may bring one entry of each stream
        self._suspects: set[tuple[str, str]] = set()
        self._beaten = float("-inf")  # when the last heartbeat that arrived was sent, by the loop's clock
        self._freed = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def running(self) -> int:
        return len(self._runs)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event, ready: Callable[[], None] | None = None) -> None:
        """Serve until `stop` is set, then drain: jobs may end within the drain time, the others are handed over.

        :param hurry: hand over at once.
        :param ready: called when the first heartbeat is out and the queues exist.
        """
        async with Subscriber(self._connections) as subscriber, self._flusher, asyncio.TaskGroup() as group:
            now = asyncio.get_running_loop().time()
            self._witness = Witness(self._settings.lease, now, range(self._partitions))
            self._housekeeping = Housekeeping(
                self._services, self._connections, self.worker, self._witness, self._outage, self._beat
            )
            if not await self._started(subscriber, stop):
                return
            if ready is not None:
                ready()
            self._signal("worker.started", queues=list(self._settings.queues), concurrency=self._settings.concurrency)
            loops = [
                group.create_task(loop, name=f"deltafan-{name}")
                for name, loop in (
                    ("heartbeat", self._every("heartbeat", self._settings.lease / BEATS_PER_LEASE, self._beat)),
                    ("recover", self._every("recovery", self._settings.reap_interval, partial(self._recover, group))),
                    ("look-after", self._housekeeping.look_after()),
                    ("promote", self._housekeeping.promote()),
                )
            ]
            taking = group.create_task(self._take(group), name="deltafan-take")
            await stop.wait()
            self._stopping.set()
            await end_task(taking)
            await self._drain(hurry)
            for loop in loops:
                await end_task(loop)
            await self._housekeeping.leave()
        self._signal("worker.stopped")

    async def _start(self, subscriber: Subscriber) -> None:
        await self._beat()
        await self._intake.ensure_groups()
        await asyncio.gather(*(self._listen(subscriber, number) for number in range(self._partitions)))

    async def _listen(self, subscriber: Subscriber, number: int) -> None:
        """Hear of cancels in a partition. Of a cluster one node may be away; it is listened to when it is back."""
        channel, apart = f"{Partition(number).control}{self.worker}", self._connections.slots is not None
        try:
            await subscriber.subscribe(channel, self._on_control, lambda: None, keep=apart)
        except BrokerUnavailable:
            if not apart:
                raise

    async def _started(self, subscriber: Subscriber, stop: asyncio.Event) -> bool:
        """Start, waiting for Redis as long as it takes, or until we are told to stop."""
        starting = asyncio.create_task(self._checked_and_started(subscriber))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            return starting.done()
        finally:
            await end_task(starting)
            await end_task(stopping)

    async def _checked_and_started(self, subscriber: Subscriber) -> None:
        await self._patiently(check_server, self._connections, "worker", self._services.hook)
        await self._patiently(self._start, subscriber)

    async def _patiently(self, action: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            try:
                await action(*args)
                self._outage.went_well("start")
                return
            except BrokerUnavailable as error:
                self._outage.failed("start", error)
                await asyncio.sleep(random.uniform(_RETRY / 2, _RETRY))  # noqa: S311 - jitter, not a secret

    async def _every(self, activity: str, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.8, 1.0) * seconds)  # noqa: S311 - jitter, not a secret
            try:
                await action()
                self._outage.went_well(activity)
            except Exception as error:  # a key of another type, say; the jobs that run have nothing to do with it
                self._outage.failed(activity, error)

    # Taking and running

    async def _take(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            free = self._free()
            if free <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                if loop.time() - self._beaten > self._settings.lease:
                    await self._beat()  # we slept past our lease: what we took now would be reaped at once
                batch = self._held[:free] or await self._intake.take(free) or await self._intake.wait(BLOCK)
            except Exception as error:  # an outage, or a key that somebody gave another type: running jobs go on
                self._outage.failed("taking", error)
                await asyncio.sleep(random.uniform(_RETRY / 2, _RETRY))  # noqa: S311 - jitter, not a secret
                continue
            self._outage.went_well("taking")
            if self._held:
                del self._held[:free]
            for taken in batch[:free]:
                self._start_job(group, taken)
            self._held.extend(batch[free:])

    def _free(self) -> int:
        """Jobs that may be begun. One that only waits for its sinks takes nobody's place, up to as many again."""
        return self._settings.concurrency - len(self._tasks) + min(len(self._settling), self._settings.concurrency)

    def _settles(self) -> None:
        """The task that calls has come to waiting for its job's sinks."""
        task = asyncio.current_task()
        if task is not None:
            self._settling.add(task)
            self._freed.set()

    def _start_job(self, group: asyncio.TaskGroup, taken: Taken) -> None:
        place = (taken.stream, taken.entry)
        if place in self._entries:
            return
        self._entries.add(place)
        if taken.last_chance and self._trial is not None:
            self._trials.append(taken)
        else:
            self._begin(group, taken)

    def _begin(self, group: asyncio.TaskGroup, taken: Taken) -> None:
        task = group.create_task(self._job(taken), name=f"deltafan-run-{taken.job_id}")
        self._tasks.add(task)
        if taken.last_chance:
            self._trial = task

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._settling.discard(task)
            self._entries.discard((taken.stream, taken.entry))
            self._freed.set()
            if task is self._trial:
                self._trial = None
                if self._trials and not self._stopping.is_set() and not task.cancelled():
                    self._begin(group, self._trials.popleft())

        task.add_done_callback(ended)

    async def _job(self, taken: Taken) -> None:
        """One entry, from claim to end. Whatever goes wrong in it costs no other job anything."""
        try:
            provider, can_continue = self._services.provider_of(taken.model)
            claim = await self._claim(taken, provider, can_continue)
            if isinstance(claim, Ended):
                if claim.code:
                    self._signal("job.ended", job=claim.job_id, state=claim.state, code=claim.code)
                self._settles()
                await deliver_late(self._services, self._connections, self._claims, claim)
            elif claim is not None:
                self._begun.add((taken.stream, taken.entry))
                await self._run_job(claim)
        except asyncio.CancelledError:
            raise
        # The entry stays ours: it is found again, and claimed, when Redis is back, or has given us our rights back.
        except (BrokerUnavailable, ConfigurationError) as error:
            self._outage.failed(f"claim of {taken.job_id}", error, [taken.job_id])
        except Exception as error:
            self._outage.went_well(f"claim of {taken.job_id}")
            self._signal("job.crashed", "error", job=taken.job_id, error=repr(error)[:500])

    async def _claim(self, taken: Taken, provider: str, can_continue: bool) -> Claim | Ended | None:
        activity = f"claim of {taken.job_id}"
        while True:
            try:
                begun = (taken.stream, taken.entry) in self._begun
                claim = await self._claims.claim(taken, provider, can_continue=can_continue, begun=begun)
            except BrokerUnavailable as error:
                self._outage.failed(activity, error, [taken.job_id])
                await asyncio.sleep(random.uniform(_RETRY / 2, _RETRY))  # noqa: S311 - jitter, not a secret
            else:
                self._outage.went_well(activity)
                return claim

    async def _run_job(self, claim: Claim) -> None:
        run = JobRun(self._services, self._connections, self._claims, self._flusher, claim, self._settles, self._outage)
        earlier = self._runs.get(claim.job_id)
        if earlier is not None:  # an attempt that Redis has forgotten
            earlier.stop("fenced")
        self._runs[claim.job_id] = run
        if self._stopping.is_set():
            run.stop("drain")
        try:
            await run.run()
        finally:
            if self._runs.get(claim.job_id) is run:
                del self._runs[claim.job_id]
        self._housekeeping.promote_soon()  # it may have been put among the delayed

    def _on_control(self, message: bytes) -> None:
        command, _, job_id = message.partition(b" ")
        run = self._runs.get(job_id.decode("utf-8", "replace"))
        if command == b"cancel" and run is not None:
            run.stop("cancelled")

    # Keeping what is ours

    async def _beat(self) -> None:
        details = {"pid": os.getpid(), "host": socket.gethostname(), "running": self.running}
        redis = self._connections.commands
        began = asyncio.get_running_loop().time()
        unheard = await upkeep.beat(redis, self._partitions, self.worker, self._settings.lease, details)
        self._intake.unheard(unheard)
        self._beaten = began
        self._witness.beaten(began, set(range(self._partitions)) - unheard)
        runs = tuple(self._runs.values())
        attempts = [(run.claim.job_id, run.claim.attempt) for run in runs]
        wanted = await upkeep.stops_wanted(redis, self.worker, attempts) if runs else []
        for run, reason in zip(runs, wanted, strict=True):
            if reason is not None:
                run.stop(reason)

    async def _recover(self, group: asyncio.TaskGroup) -> None:
        """Find entries that Redis counts as ours and that never reached us: their reply was lost on the way."""
        if self._stopping.is_set():
            return
        known = self._entries | {(taken.stream, taken.entry) for taken in self._held}
        pending = await self._intake.pending()
        strays = [t for t in pending if (t.stream, t.entry) not in known]
        self._begun &= self._entries | {(t.stream, t.entry) for t in pending}
        # Twice in a row, because an entry may have been on its way to us when we looked.
        lost = [t for t in strays if (t.stream, t.entry) in self._suspects]
        self._suspects = {(t.stream, t.entry) for t in strays} - {(t.stream, t.entry) for t in lost}
        for place in lost:
            if self._free() <= 0 and len(self._held) >= self._settings.concurrency:
                self._suspects.add((place.stream, place.entry))  # it stays ours, and is found again
                continue
            taken = await self._intake.look(place)
            if taken is None:
                continue
            if self._free() > 0 and not self._stopping.is_set():
                self._start_job(group, taken)  # here, because the taker may be waiting for other work
            else:
                self._held.append(taken)

    # Stopping

    async def _drain(self, hurry: asyncio.Event) -> None:
        self._signal("worker.draining", running=self.running, seconds=self._settings.drain)
        hurried = asyncio.create_task(hurry.wait())
        ended = asyncio.create_task(self._idle())
        try:
            await asyncio.wait({hurried, ended}, timeout=self._settings.drain, return_when="FIRST_COMPLETED")
            for run in tuple(self._runs.values()):
                run.stop("drain")
            await asyncio.wait({ended}, timeout=self._settings.lease)
        finally:
            await end_task(hurried)
            await end_task(ended)
        for task in tuple(self._tasks):  # Redis is away: what is left is reaped when our lease runs out
            await end_task(task)

    async def _idle(self) -> None:
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def _signal(self, name: str, level: Any = "info", **fields: Any) -> None:
        self._services.hook(Signal(name, level, {"worker": self.worker} | fields))
