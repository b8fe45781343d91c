"""A soak's jobs: each is enqueued, followed, perhaps cancelled, judged when it has ended, and forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from deltafan.broker.cancel import CancelOutcome
from deltafan.broker.keys import partition
from deltafan.broker.queue import AsyncJob
from deltafan.chaos import audit, oracle
from deltafan.chaos.deployment import Deployment
from deltafan.chaos.disturbances import Disturbances
from deltafan.chaos.followers import Follow, Seen, by_channel, by_client, by_sse, coming_and_going
from deltafan.chaos.report import Report, Violation
from deltafan.chaos.rig import Job
from deltafan.chaos.verdict import Breach, Facts, Followed, judge
from deltafan.chaos.workload import PlannedFollower, PlannedJob
from deltafan.errors import BrokerUnavailable
from deltafan.events import Event, EventId, Meta

RETRY: Final = 0.1
"""Seconds between two tries of a client whose Redis is away."""
_T = TypeVar("_T")


@dataclass(eq=False)
class Running:
    """A job under way."""

    planned: PlannedJob
    job: Job
    cursors: dict[str, EventId] = field(default_factory=dict)
    """What followers began with."""
    cancelled: CancelOutcome | None = None
    struck: dict[int, float] = field(default_factory=dict)
    """When an attempt's worker was killed or stopped (Unix time in seconds)."""


class Load:
    """Runs planned jobs on a deployment, and reports what became of them."""

    def __init__(self, deployment: Deployment, disturbances: Disturbances, report: Report) -> None:
        self.running: dict[str, Running] = {}
        self._deployment = deployment
        self._rig = deployment.rig
        self._disturbances = disturbances
        self._report = report

    async def run(self, planned: PlannedJob) -> None:
        """One job from its enqueueing to its verdict."""
        began = time.time()
        handles = await asyncio.gather(*(self._enqueue(planned) for _ in range(1 + planned.twice)))
        job = Job(handles[0].id, handles[0], f"chaos-{planned.number}", planned.text, self._rig)
        running = self.running[job.id] = Running(planned, job)
        self._report.enqueued += 1
        self._report.kinds[planned.kind] += 1
        if len({handle.id for handle in handles}) > 1:
            self.violation(job.id, "two clients", "one idempotency key made two jobs")
        try:
            async with asyncio.TaskGroup() as group:
                for place, follower in enumerate(planned.followers):
                    group.create_task(self._follow(running, place, follower))
                if planned.cancel_after is not None:
                    group.create_task(self._cancel(running, planned.cancel_after))
            await self._judge(running, began)
        finally:
            await _stop(job)
            del self.running[job.id]

    async def struck(self, worker: str) -> None:
        """A worker has been killed or stopped: remember which attempts it had."""
        redis, now = self._rig.queue.connections.commands, time.time()
        for running in tuple(self.running.values()):
            try:
                owner: Any = await redis.hmget(partition(running.job.id).job(running.job.id), ["owner", "attempt"])
            except Exception:  # Redis is away at this moment: these are not measured
                return
            if owner[0] == worker.encode():
                running.struck[int(owner[1])] = now

    def violation(self, subject: str, follower: str, rule: str, moment: float | None = None) -> None:
        faults = self._disturbances.before(time.time() if moment is None else moment)
        self._report.violations.append(Violation(subject, follower, rule, tuple(faults)))

    async def _enqueue(self, planned: PlannedJob) -> AsyncJob:
        """As a client that means it: with an idempotency key, until Redis has answered."""
        key = f"chaos-{planned.number}"
        params = {"metadata": {"key": key, "text": planned.text, **planned.scripted}}
        spec = {"model": "vllm/scripted", "prompt": key, "params": params, "idempotency_key": key, **planned.spec}
        return await _patiently(lambda: self._deployment.queue.enqueue(spec))

    async def _follow(self, running: Running, place: int, planned: PlannedFollower) -> None:
        await asyncio.sleep(planned.joins)
        job, cursor = running.job, None
        kind = "client" if planned.kind == "channel" and self._deployment.redis is None else planned.kind
        if planned.resumes:  # not at the end: there a browser has nothing to come back for
            cursor = next((seen.last for seen in job.seen.values() if not seen.ended), None)
        name = f"{kind} {place + 1}"
        if cursor is not None:
            running.cursors[name] = cursor
        self._report.followers[kind] += 1
        urls = self._deployment.urls

        def follow_from(after: EventId | None) -> Follow:
            after = after or cursor
            match kind:
                case "sse":
                    turn = place % len(urls)
                    return by_sse(self._rig.http, urls[turn:] + urls[:turn], job.id, after)
                case "channel" if (redis := self._deployment.redis) is not None:
                    return by_channel(lambda: nullcontext(redis), partition(job.id).of_job(job.id))
                case _:
                    return by_client(self._deployment.queue, job.id, after)

        job.start(name, coming_and_going(follow_from, planned.stays))
        await job.tasks[name]

    async def _cancel(self, running: Running, after: float) -> None:
        await asyncio.sleep(after)
        running.cancelled = await _patiently(self._deployment.queue.job(running.job.id).cancel)

    async def _judge(self, running: Running, began: float) -> None:
        job, report = running.job, self._report
        connections = self._rig.queue.connections
        log = await _patiently(lambda: audit.read_log(connections, job.id))
        status = await _patiently(job.handle.status)
        requests = job.requests
        overlaps = oracle.overlaps(requests)
        twice = self._disturbances.unexplained(overlaps)
        facts = Facts(
            log,
            status,
            {name: self._followed(running, name, seen) for name, seen in job.seen.items()},
            cancelled=running.cancelled,
            requests=requests,
            twice=twice,
            doubted=self._disturbances.doubt(began, time.time()),
            forgotten=self._rig.provider.journal.forgotten > 0,
        )
        transcript = oracle.transcript_of(log)
        problems = await _patiently(lambda: audit.record_problems(connections, job.id, transcript))
        breaches = judge(running.planned, facts) + [Breach("the record", problem) for problem in problems]
        for breach in breaches:
            self.violation(f"{job.id} ({running.planned.kind})", breach.follower, breach.rule)
        report.states[status.state] += 1
        if status.state == "failed":
            report.failures[str((status.error or {}).get("code"))] += 1
        begun = _begun(log)
        report.attempts += len(begun)
        report.takeovers += sum(error.get("code") == "worker_lost" for error in status.attempt_errors)
        report.requests += len(requests)
        report.provider_faults += sum(record.outcome.startswith("fault:") for record in requests)
        report.overlaps += len(overlaps) - len(twice)
        report.takeover_seconds += _takeovers(begun, running.struck)
        for seen in job.seen.values():
            report.events += seen.delivered
            report.resets += seen.resets
            report.reconnections += max(0, seen.connections - 1)

    @staticmethod
    def _followed(running: Running, name: str, seen: Seen) -> Followed:
        cursor = running.cursors.get(name) if not seen.resets else None
        return Followed(seen.events, cursor, seen.gone or ", ".join(seen.told))


def _begun(log: list[Event]) -> dict[int, float]:
    """When each attempt of a log began (Unix time in seconds). Numbers are left out after a restart of Redis."""
    metas = [event for event in log if isinstance(event, Meta) and event.id is not None and event.id.seq == 0]
    return {meta.attempt: meta.created / 1000 for meta in metas}


def _takeovers(begun: dict[int, float], struck: dict[int, float]) -> list[float]:
    """Seconds from the loss of an attempt's worker to the next attempt."""
    later = {attempt: [at for number, at in begun.items() if number > attempt] for attempt in struck}
    return [min(later[attempt]) - at for attempt, at in struck.items() if later[attempt]]


async def _patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until Redis is there."""
    while True:
        try:
            return await ask()
        except BrokerUnavailable:
            await asyncio.sleep(RETRY)


async def _stop(job: Job) -> None:
    for task in job.tasks.values():
        task.cancel()
    await asyncio.gather(*job.tasks.values(), return_exceptions=True)
