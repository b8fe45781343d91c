"""What must hold of one job of a soak when it has ended: pure, given all that is known of it.

The faults of a soak may end a job as failed, and may have it asked for twice. They never excuse a hole, a token twice
or out of place, a second `done`, a text that is not whole when the job is done, or followers who saw different things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deltafan.broker.cancel import CancelOutcome
from deltafan.broker.status import JobStatus
from deltafan.chaos import oracle
from deltafan.chaos.sent import WELL, sent_problems
from deltafan.chaos.workload import PlannedJob
from deltafan.devserver.provider import parse_tool_calls
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.errors import CompletionError
from deltafan.events import Event, EventId
from deltafan.transcript import Transcript

LOG = "the log"
RECORD = "the record"
PROVIDER = "the provider"
_PASSING = frozenset(code for code, retryable in CompletionError.CODES.items() if retryable)
INTERNAL = "internal error of the worker"
"""What a job is told that failed by a bug of ours."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What one follower saw."""

    events: Sequence[Event]
    after: EventId | None = None
    """The cursor that it began with, if what it saw still begins there."""
    gone: str = ""
    """Why it was told that there is nothing to follow."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a job that has ended."""

    log: Sequence[Event]
    status: JobStatus
    followers: Mapping[str, Followed] = field(default_factory=dict)
    cancelled: CancelOutcome | None = None
    """What the cancel answered, where there was one."""
    requests: Sequence[RequestRecord] = ()
    twice: Sequence[oracle.Overlap] = ()
    """Requests that ran at the same time, without a fault that explains it."""
    doubted: bool = True
    """A worker may have been thought lost while it ran."""
    forgotten: bool = False
    """The provider's journal may have let go of requests."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that was broken."""

    follower: str
    rule: str


def judge(job: PlannedJob, facts: Facts) -> list[Breach]:
    """Every promise that was broken for this job."""
    return [
        *_transcripts(facts),
        *(Breach(RECORD, rule) for rule in _record(job, facts)),
        *(Breach(LOG, rule) for rule in _output(job, oracle.transcript_of(facts.log))),
        *(Breach(PROVIDER, rule) for rule in _provider(facts)),
    ]


def _transcripts(facts: Facts) -> Iterator[Breach]:
    yield from (Breach(LOG, rule) for rule in oracle.problems_of(facts.log))
    for name, followed in facts.followers.items():
        if followed.gone:
            yield Breach(name, f"was told {followed.gone}, and the job is there")
            continue
        yield from (Breach(name, rule) for rule in oracle.problems_of(followed.events, after=followed.after))
        expected = [e for e in facts.log if followed.after is None or (e.id is not None and e.id > followed.after)]
        differences = oracle.agreement_problems({LOG: expected, name: followed.events})
        yield from (Breach(name, rule) for rule in differences)


def _record(job: PlannedJob, facts: Facts) -> Iterator[str]:
    """Whether the job ended in a way in which it may, given what was planned and what was lost."""
    status, cancelled = facts.status, facts.cancelled
    if cancelled is not None and cancelled.cancelled != (status.state == "cancelled"):
        yield f"the cancel answered {cancelled.state}, and the job ended as {status.state}"
    match status.state:
        case "done" if status.finish_reason != job.finish_reason:
            yield f"it ended with {status.finish_reason}, the model with {job.finish_reason}"
        case "failed":
            yield from _failure(job, status)
        case "cancelled" if job.cancel_after is None:
            yield "it is cancelled, and nobody did that"
        case "expired" if "expires_in" not in job.spec:
            yield "it has expired, and was to wait for ever"
        case "expired" if status.started is not None:
            yield "it has expired, and had started"
        case "done" | "cancelled" | "expired":
            pass
        case other:
            yield f"its followers saw done, and the record says {other}"


def _failure(job: PlannedJob, status: JobStatus) -> Iterator[str]:
    error = status.error or {}
    code, message = error.get("code"), str(error.get("message"))
    if INTERNAL in message:
        yield f"it failed with {code}: {message}"
    elif job.refusal:
        if code != job.refusal:
            yield f"it failed with {code}, the provider refused it with {job.refusal}"
    elif job.spec.get("on_takeover") == "fail" and code in _PASSING:
        return  # text that has been streamed may not be said again: the first loss is the end
    elif (failed := status.failures) < (status.max_attempts or 1):
        yield f"it failed with {code} ({message}) after {failed} of {status.max_attempts} attempts"


def _output(job: PlannedJob, transcript: Transcript) -> Iterator[str]:
    reason = transcript.done.finish_reason if transcript.done else None
    if reason == "error" and transcript.error is None:
        yield "it failed, and there is no error before its done"
    whole = reason in WELL
    expected = {"text": job.text, "reasoning": job.scripted.get("reasoning", "")}
    for name, text in expected.items():
        said = getattr(transcript, name)
        if said != text if whole else not text.startswith(said):
            yield oracle.difference(said, text, name)
    if whole:
        calls = [(call.name, call.arguments) for call in transcript.tool_calls]
        made = [(call.name, call.arguments) for call in parse_tool_calls(job.scripted.get("tool_calls", "[]"))]
        if calls != made:
            yield f"its tool calls are {calls!r:.300}, the model made {made!r:.300}"


def _provider(facts: Facts) -> Iterator[str]:
    yield from sent_problems(facts.log, facts.requests, overlaps=facts.doubted, forgotten=facts.forgotten)
    for overlap in facts.twice:
        yield f"was asked twice at once, for {overlap.seconds:.2f} s, and no worker was cut off"
