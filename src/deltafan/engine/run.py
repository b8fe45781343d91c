"""One job's run: ask the model, write the log, end the attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from deltafan.broker.claims import Claim, Claims
from deltafan.broker.connections import Connections
from deltafan.broker.interest import is_followed
from deltafan.channels import PUSHER
from deltafan.engine.ending import Ending
from deltafan.engine.flusher import Flusher
from deltafan.engine.history import History, read_history
from deltafan.engine.joblog import JobLog
from deltafan.engine.outcome import Completed, Failed, Outcome, Stopped, StopReason
from deltafan.engine.services import Services, job_info
from deltafan.errors import BrokerUnavailable, CompletionError, ConfigurationError
from deltafan.events import MAX_SEQ, Done, Event, EventId, FinishReason, Meta, Usage
from deltafan.job import JobSpec, JobState
from deltafan.llm import Request, Started
from deltafan.llm.usage import add, estimate
from deltafan.sinks.fanout import FROM_THE_START, Fanout, Start, unknown_sinks
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage

_SECOND = 1000


class JobRun:
    """An attempt that this worker has claimed. `run` returns when there is nothing more to do for it here."""

    def __init__(
        self,
        services: Services,
        connections: Connections,
        claims: Claims,
        flusher: Flusher,
        claim: Claim,
        settling: Callable[[], None],
        outage: Outage,
    ) -> None:
        """:param settling: called when the job has ended and only waits for its sinks."""
        self._outage = outage
        self.claim = claim
        self._settling = settling
        self._services = services
        self._connections = connections
        self._claims = claims
        self._settings = services.settings
        self._began = time.monotonic()
        self._first_token: float | None = None
        self._reason: StopReason | None = None
        self._task: asyncio.Task[Completed | Failed] | None = None
        self.log = JobLog(
            claim,
            wake=flusher.wake,
            stop=self._stopped_by_log,
            buffer_bytes=self._settings.buffer_bytes,
            memory_bytes=self._settings.memory_bytes,
            idle_ms=int(services.retention.idle_retention * _SECOND),
        )

    def stop(self, reason: StopReason) -> None:
        """Stop the completion; the attempt ends as the reason says. The first reason stands."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def _stopped_by_log(self, reason: str) -> None:
        known: dict[str, StopReason] = {
            "cancelled": "cancelled",
            "fenced": "fenced",
            "gone": "gone",
            "lost_tail": "lost_tail",
        }
        self.stop(known.get(reason, "refused"))

    async def run(self) -> None:
        claim = self.claim
        self._signal("attempt.started", attempt=claim.attempt, waited=round(self._waited, 3))
        if claim.cancelled:
            self.stop("cancelled")
        history = await self._history()
        fanout = self._fanout()
        try:
            outcome = await self._outcome(history)
            self._signal(
                "attempt.ended", attempt=claim.attempt, outcome=_name(outcome), seconds=round(self._seconds(), 3)
            )
            ending = Ending(
                self._services,
                self._connections,
                self._claims,
                self.log,
                fanout,
                self._timings(),
                self._settling,
                self._outage,
                self._job_ended,
            )
            await ending.carry_out(outcome, history.usage)
        finally:
            self.log.close()
            await fanout.aclose()

    def _job_ended(self, state: JobState, reason: FinishReason) -> None:
        seconds = round(self._waited + self._seconds(), 3)
        self._signal("job.ended", state=state, finish_reason=reason, attempts=self.claim.attempt, seconds=seconds)

    @property
    def _waited(self) -> float:
        """Seconds from the job's enqueueing to this attempt's claim, by Redis's clock."""
        return (self.claim.claimed - self.claim.created) / _SECOND

    async def _history(self) -> History:
        """What earlier attempts leave to this one. Redis is waited for: the claim stands meanwhile."""
        activity = f"history of {self.claim.job_id}"
        try:
            while True:
                try:
                    return await read_history(self._connections.commands, self.claim)
                except (BrokerUnavailable, ConfigurationError) as error:
                    self._outage.failed(activity, error, [self.claim.job_id])
                    await asyncio.sleep(0.5)
        finally:
            self._outage.went_well(activity)

    async def _outcome(self, history: History) -> Outcome:
        task = self._task = asyncio.create_task(self._complete(history), name=f"deltafan-job-{self.claim.job_id}")
        watcher: asyncio.Task[None] | None = None
        if self.claim.spec.cancel_if_abandoned is not None:
            watcher = asyncio.create_task(self._watch(self.claim.spec.cancel_if_abandoned))
        if self._reason is not None:
            task.cancel()
        try:
            await asyncio.wait({task})
        finally:
            if not task.done():  # we are being cancelled ourselves
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
        if task.cancelled():
            if self._reason is None:
                raise asyncio.CancelledError
            return Stopped(self._reason, self._estimate())
        error = task.exception()
        if error is not None:
            if not isinstance(error, Exception):
                raise error
            # A fault of ours or of a user's ring: the job's follower is told nothing but that.
            self._signal("job.crashed", level="error", error=repr(error)[:500])
            return Failed(CompletionError("server_error", "internal error of the worker"), self._estimate())
        return task.result()

    async def _complete(self, history: History) -> Completed | Failed:
        problem = self._problem()
        if problem is not None:
            return Failed(problem, Usage(0, 0, 0, source="reported"))
        spec, settings = self.claim.spec, self._settings
        request = Request(
            model=spec.model,
            messages=spec.chat(),
            params=spec.params,
            prefix=history.prefix,
            timeout=spec.timeout or settings.timeout,
            first_token_timeout=spec.first_token_timeout or settings.first_token_timeout,
            stall_timeout=spec.stall_timeout or settings.stall_timeout,
            options=_options(spec, self.claim.tenant),
        )
        completions = self._services.completions_for(spec)
        usage: Usage | None = None
        finish: FinishReason | None = None
        try:
            async with aclosing(completions.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Usage):
                        usage = event if usage is None else add(usage, event)
                    elif isinstance(event, Done):
                        finish = event.finish_reason
                    elif not isinstance(event, Started):
                        await self._emit(event)
        except CompletionError as error:
            return Failed(error, error.usage or usage or self._estimate())
        if finish is None:
            return Failed(CompletionError("malformed_stream", "the completion ended without an end"), self._estimate())
        return Completed(finish, usage or self._estimate())

    async def _emit(self, event: Event) -> None:
        if isinstance(event, Meta):  # another model takes over
            event = replace(event, attempt=self.claim.attempt, metadata=self.claim.spec.metadata)
        elif self._first_token is None:
            self._first_token = self._seconds()
        self.log.emit(event)
        if self.log.full:
            await self.log.room()

    def _problem(self) -> CompletionError | None:
        """Why the job cannot run here at all."""
        if not self.claim.understood:
            return CompletionError("bad_request", "the job was written by a newer version than this worker's")
        spec = self.claim.spec
        missing = unknown_sinks(spec.sinks, self._services.sinks)
        if missing:
            has = ", ".join(sorted(self._services.sinks)) or "none"
            hint = "; set PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET" if PUSHER in missing else ""
            told = f"sinks: this worker has no {', '.join(missing)} (it has: {has}{hint})"
            return CompletionError("bad_request", told)
        return self._services.tool_problem(spec)

    def _estimate(self) -> Usage:
        return estimate(self.claim.spec.chat(), self.log.output_chars)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _timings(self) -> dict[str, float]:
        """Milliseconds. `queued` from enqueue to this attempt's claim, the others from its claim."""
        claim = self.claim
        timings = {"queued": float(claim.claimed - claim.created), "total": round(self._seconds() * _SECOND, 1)}
        if self._first_token is not None:
            timings["first_token"] = round(self._first_token * _SECOND, 1)
        return timings

    def _fanout(self) -> Fanout:
        claim, spec = self.claim, self.claim.spec
        if unknown_sinks(spec.sinks, self._services.sinks):
            return Fanout(())
        info = job_info(claim.job_id, claim.tenant, spec)
        fanout = Fanout(self._services.runners(info, spec.sinks, self._connections, lambda _: self._start()))
        if fanout:
            self.log.on_appended = fanout.offer
        return fanout

    def _start(self) -> Start:
        """A sink begins with this attempt, which makes void what went before; or, where it goes on from that, with all
        of it, because nobody can tell how far the worker before had got."""
        before = EventId(self.claim.attempt - 1, MAX_SEQ)
        if self.claim.attempt == 1:
            return FROM_THE_START
        return Start(maybe_sent=before) if self.claim.how == "continued" else Start(after=before)

    async def _watch(self, patience: float) -> None:
        """Stop the attempt when nobody has followed it for `patience` seconds."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(max(0.05, min(1.0, patience / 4)))
            last = max(last, self.log.seen_at or 0.0)
            if loop.time() - last < patience / 2:
                continue
            try:
                followed = await is_followed(self._connections.commands, self.claim.job_id, self.claim.spec.channel)
            except Exception:  # Redis is away: nobody can be heard, and nobody is blamed
                last = loop.time()
                continue
            if followed:
                last = loop.time()
            elif loop.time() - last >= patience:
                self.stop("abandoned")
                return

    def _signal(self, name: str, level: str = "info", **fields: Any) -> None:
        known = {"job": self.claim.job_id, "worker": self.claim.worker}
        self._services.hook(Signal(name, level, known | fields))  # type: ignore[arg-type]


def _options(spec: JobSpec, tenant: str) -> dict[str, Any]:
    """What the job wants of the router, which decides what it leaves open; and whose answers the cache may give it."""
    options: dict[str, Any] = {"tenant": tenant} | ({"fallbacks": spec.fallbacks} if spec.fallbacks else {})
    return options | ({"mid_stream": spec.on_takeover} if "on_takeover" in spec.model_fields_set else {})


def _name(outcome: Outcome) -> str:
    match outcome:
        case Completed():
            return outcome.finish_reason
        case Failed():
            return outcome.error.code
        case Stopped():
            return outcome.reason
