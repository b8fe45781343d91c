"""Ending an attempt: the last events, the job's state, its place in the queue. Outages of Redis are waited out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from deltafan.broker.claims import Claim, Claims
from deltafan.broker.connections import Connections, is_transient, redis_errors
from deltafan.broker.scripts import Arg
from deltafan.engine.joblog import JobLog
from deltafan.engine.outcome import Completed, Failed, Outcome, Stopped, retry_wait
from deltafan.engine.services import Services
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.events import Done, Error, Event, EventId, FinishReason, Usage
from deltafan.job import JobState
from deltafan.llm.usage import add
from deltafan.sinks.fanout import Fanout
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage
from deltafan.wire import encode, payload

_RETRY_MIN, _RETRY_MAX = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the job is to end."""

    state: JobState
    finals: tuple[Event, ...]
    finish_reason: FinishReason
    error: Error | None = None
    dead: str = ""


class Ending:
    """Carries out what an outcome means for the job."""

    def __init__(
        self,
        services: Services,
        connections: Connections,
        claims: Claims,
        log: JobLog,
        fanout: Fanout,
        timings: Mapping[str, float],
        settling: Callable[[], None],
        outage: Outage,
        ended: Callable[[JobState, FinishReason], None],
    ) -> None:
        """
        :param settling: called when the job has ended and only waits for its sinks.
        :param ended: called when the job has ended, not only its attempt.
        """
        self._services = services
        self._claims = claims
        self._redis = connections.commands
        self._claim = log.claim
        self._log = log
        self._fanout = fanout
        self._timings = dict(timings)
        self._settling = settling
        self._outage = outage
        self._ended = ended
        self._total = Usage()

    async def carry_out(self, outcome: Outcome, earlier: Usage | None) -> None:
        """:param earlier: the usage of attempts before this one."""
        total = self._total = outcome.usage if earlier is None else add(earlier, outcome.usage)
        match outcome:
            case Stopped(reason="fenced" | "gone" | "refused" as reason):
                self._log.close()  # refused: the worker's next look charges it a failure
                self._note_gone(reason)
            case Stopped(reason="drain" | "lost_tail"):
                await self._release(await self._log.seal(), outcome.usage, total)
            case _:
                rest = await self._log.seal()
                if self._log.broken:  # as above, but refused when the model had ended already
                    return
                if isinstance(outcome, Failed) and self._retries(outcome):
                    await self._retry(rest, outcome, total)
                else:
                    await self._finish(rest, self._plan(outcome), total)

    def _retries(self, failed: Failed) -> bool:
        if self._claim.spec.on_takeover == "fail" and self._log.visible:
            return False  # another attempt would make void what is before a reader
        most = self._claim.spec.max_attempts or self._services.settings.max_attempts
        return failed.error.retryable and self._claim.failures + 1 < most

    def _plan(self, outcome: Completed | Failed | Stopped) -> _Plan:
        match outcome:
            case Completed():
                return _Plan("done", (outcome.usage, self._done(outcome.finish_reason)), outcome.finish_reason)
            case Failed():
                error = _error(outcome, will_retry=False)
                done = self._done("error")
                return _Plan("failed", (outcome.usage, error, done), "error", error, dead=error.code)
            case Stopped():
                cause: Error | None = None
                if outcome.reason == "abandoned":
                    patience = self._claim.spec.cancel_if_abandoned
                    cause = Error(code="cancelled", message=f"nobody followed the job for {patience:g} s")
                return _Plan("cancelled", (outcome.usage, self._done("cancelled")), "cancelled", cause)

    def _done(self, reason: FinishReason) -> Done:
        return Done(reason, text_length=self._log.chars, timings=self._timings)

    async def _finish(self, rest: Sequence[Event], plan: _Plan, total: Usage) -> None:
        while True:
            events = [*rest, *plan.finals]
            answer = await self._patiently(partial(self._finish_once, plan, events, total))
            if answer in ("finished", "duplicate"):
                self._ended(plan.state, plan.finish_reason)
                await self._settle_sinks(self._land(events))
                return
            if answer == "cancelled":  # the cancel came before our end, and wins
                plan = self._plan(Stopped("cancelled", _usage_of(plan.finals)))
            else:
                self._note_gone(answer)
                return

    async def _finish_once(self, plan: _Plan, events: Sequence[Event], total: Usage) -> str:
        status, last = await self._claims.finish(
            self._claim,
            self._log.next_seq,
            self._encode(events),
            plan.state,
            self._record(plan, total),
            acknowledge=not self._fanout,
            dead=plan.dead,
            error=_attempt_error(self._claim, plan.error) if plan.error and plan.state == "failed" else b"",
        )
        return await self._mended(status, last)

    async def _retry(self, rest: Sequence[Event], failed: Failed, total: Usage) -> None:
        error = _error(failed, will_retry=True)
        wait = retry_wait(self._services.settings, self._claim.failures + 1, failed.error.retry_after)
        events = [*rest, failed.usage, error]
        answer = await self._patiently(partial(self._retry_once, events, error, wait, total))
        if answer == "cancelled":
            await self._finish(rest, self._plan(Stopped("cancelled", failed.usage)), total)
        elif answer in ("delayed", "duplicate"):
            last = self._land(events)
            fields = {"job": self._claim.job_id, "worker": self._claim.worker, "attempt": self._claim.attempt}
            self._services.hook(Signal("job.retrying", "info", fields | {"code": error.code, "wait": round(wait, 3)}))
            await self._fanout.settle(last, min(wait, self._services.settings.sink_budget))
        else:
            self._note_gone(answer)

    async def _retry_once(self, events: Sequence[Event], error: Error, wait: float, total: Usage) -> str:
        record: dict[str, Arg] = {"usage": orjson.dumps(payload(total)), "usage_lost": "", "chars": self._log.chars}
        if self._log.visible:
            record["visible"] = "1"
        status, last = await self._claims.retry(
            self._claim, self._log.next_seq, self._encode(events), wait, _attempt_error(self._claim, error), record
        )
        return await self._mended(status, last)

    async def _release(self, rest: Sequence[Event], usage: Usage, total: Usage) -> None:
        """Hand the job over. What was not written yet is not: the next attempt begins anew, or from what was."""
        answer = await self._patiently(partial(self._claims.release, self._claim, orjson.dumps(payload(total))))
        if answer == "cancelled":
            await self._finish(rest, self._plan(Stopped("cancelled", usage)), total)
        else:
            self._note_gone(answer)

    def _note_gone(self, why: str) -> None:
        """Redis has no record of the job any more, so that nobody else will ever tell of its end."""
        if why == "gone":
            fields = {"job": self._claim.job_id, "worker": self._claim.worker, "attempt": self._claim.attempt}
            self._services.hook(Signal("job.gone", "warning", fields))

    async def _mended(self, status: str, last: int) -> str:
        """Refill a log that lost its tail, then the script is to be asked again."""
        if status != "gap":
            return status
        call = self._log.backfill(last)
        if call is None:
            await self._claims.release(self._claim, orjson.dumps(payload(self._total)))
            return "fenced"
        answer = await call.script.run(self._redis, call.keys, call.args)
        return "again" if answer[0] in (b"appended", b"duplicate", b"gap") else "fenced"

    async def _patiently(self, action: Callable[[], Awaitable[str]]) -> str:
        """Do it, again and again while Redis is away or the answer is `again`: the job's end must not be lost."""
        wait, job_id = _RETRY_MIN, self._claim.job_id
        activity = f"end of {job_id}"
        try:
            while True:
                try:
                    with redis_errors():
                        answer = await action()
                    if answer != "again":
                        return answer
                except (BrokerUnavailable, ConfigurationError) as error:  # an operator may mend either while we wait
                    self._outage.failed(activity, error, [job_id])
                except Exception as error:
                    if not is_transient(error):
                        fields = {"job": job_id, "worker": self._claim.worker, "error": str(error)[:200]}
                        self._services.hook(Signal("ending.failed", "error", fields))
                        return "refused"
                    self._outage.failed(activity, error, [job_id])
                await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, _RETRY_MAX)
        finally:
            self._outage.went_well(activity)

    def _encode(self, events: Sequence[Event]) -> list[bytes]:
        first, attempt = self._log.next_seq, self._claim.attempt
        return [
            encode(self._claim.job_id, EventId(attempt, first + place), event) for place, event in enumerate(events)
        ]

    def _land(self, events: Sequence[Event]) -> EventId:
        """Hand what has been written to the sinks. Gives the last id."""
        first, attempt = self._log.next_seq, self._claim.attempt
        self._fanout.offer(
            [
                replace(event, id=EventId(attempt, first + place), job=self._claim.job_id)
                for place, event in enumerate(events)
            ]
        )
        return EventId(attempt, first + len(events) - 1)

    def _record(self, plan: _Plan, total: Usage) -> dict[str, Arg]:
        record: dict[str, Arg] = {
            "finish_reason": plan.finish_reason,
            "chars": self._log.chars,
            "usage": orjson.dumps(payload(total)),
            "usage_lost": "",
            "timings": orjson.dumps(self._timings),
        }
        if self._fanout:
            record["sinks"] = orjson.dumps(self._fanout.status())
        if plan.error is not None:
            record["error"] = orjson.dumps(payload(plan.error))
        return record

    async def _settle_sinks(self, last: EventId) -> None:
        """The job has ended; it is acknowledged when its sinks have its `done`, or have run out of their budget."""
        if not self._fanout:
            return
        self._settling()
        standing = await self._fanout.settle(last, self._services.settings.sink_budget)
        await self._patiently(partial(self._acknowledge, standing))

    async def _acknowledge(self, standing: Mapping[str, dict[str, Any]]) -> str:
        await self._claims.acknowledge(self._claim.taken, self._claim.job_id, {"sinks": orjson.dumps(dict(standing))})
        return "acknowledged"


def _usage_of(finals: Sequence[Event]) -> Usage:
    return next(event for event in finals if isinstance(event, Usage))


def _error(failed: Failed, *, will_retry: bool) -> Error:
    error = failed.error
    return Error(
        code=error.code,
        message=error.message,
        status=error.status,
        retryable=error.retryable,
        will_retry=will_retry,
    )


def _attempt_error(claim: Claim, error: Error) -> bytes:
    """One line of the list of attempts' errors, in the record and in the dead letter."""
    known = {"attempt": claim.attempt, "code": error.code, "message": error.message, "status": error.status}
    return orjson.dumps({name: value for name, value in known.items() if value is not None})
