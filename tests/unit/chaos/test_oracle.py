"""Each rule of the oracle is broken once: it is found, and named after who saw it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deltafan.broker.cancel import CancelOutcome
from deltafan.chaos.oracle import Overlap, failure_problems
from deltafan.chaos.verdict import LOG, PROVIDER, RECORD, Facts, Followed, judge
from deltafan.chaos.workload import PlannedJob
from deltafan.devserver.provider.sent import CallPiece, SentCall
from deltafan.events import Done, Event, EventId, Meta, TextDelta, ToolCallDelta
from tests.unit.chaos.kit import JOB, TEXT, broken_off, facts, failed, numbered, request, status, whole

CALLS = '[{"name": "f", "arguments": {"x": 1}}]'


def _tools(arguments: str = '{"x":1}') -> list[Event]:
    call = ToolCallDelta(index=0, call_id="call_1", name="f", arguments=arguments)
    return numbered([*whole()[:4], call, whole()[4], Done("tool_calls", len(TEXT))])


def _sent(arguments: str) -> SentCall:
    call = SentCall(0, id="call_1", name="f")
    call.add(CallPiece(0, arguments=arguments))
    return call


def test_a_job_that_went_well_has_nothing_wrong_with_it() -> None:
    assert judge(JOB, facts()) == []


GOOD = {
    "taken over and begun anew": facts(
        log=broken_off() + whole(2, restart=True),
        status=status(attempt=2, failures=1, attempt_errors=[{"code": "worker_lost"}]),
        followers={"sse 1": Followed(broken_off() + whole(2, restart=True))},
    ),
    "followed from a cursor on": facts(followers={"sse 1": Followed(whole()[3:], after=EventId(1, 2))}),
    "merged in a replay": facts(
        followers={
            "sse 1": Followed(
                [
                    whole()[0],
                    TextDelta(TEXT, id=EventId(1, 3), first=EventId(1, 1)),
                    *whole()[4:],
                ]
            )
        }
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_may_happen_is_no_violation(name: str) -> None:
    assert judge(JOB, GOOD[name]) == []


FOLLOWER_SAW: dict[str, tuple[list[Event], str]] = {
    "an event removed": (whole()[:2] + whole()[3:], "1-3 follows 1-1"),
    "an event twice": ([*whole()[:3], whole()[2], *whole()[3:]], "1-2 follows 1-2"),
    "two events out of order": ([*whole()[:2], whole()[3], whole()[2], *whole()[4:]], "1-3 follows 1-1"),
    "no meta": (whole()[1:], "attempt 1 begins at 1-1 with a text_delta, not with its meta"),
    "an event without an id": ([*whole()[:2], replace(whole()[2], id=None), *whole()[3:]], "a text_delta has no id"),
    "no done": (whole()[:-1], "ends with a usage (1-4), not with done"),
    "two dones": ([*whole(), replace(whole()[-1], id=EventId(1, 6))], "has 2 done events"),
    "an event after done": ([*whole(), TextDelta("!", id=EventId(1, 6))], "ends with a text_delta (1-6)"),
    "nothing": ([], "no events at all"),
    "another text": ([*whole()[:2], TextDelta("2wo ", id=EventId(1, 2)), *whole()[3:]], "differ in attempt 1"),
    "a text of another length than done says": ([*whole()[:-1], Done("stop", 99, id=EventId(1, 5))], "done counts 99"),
    "a new attempt that does not say what becomes of the old": (
        broken_off() + whole(2),
        "2-0 does not say what becomes of the output before it",
    ),
    "an attempt that the log has not": (broken_off() + whole(2, restart=True), "saw attempts [1, 2]"),
    "an event of an attempt that is over": (
        [*broken_off(), whole(2, restart=True)[0], TextDelta("late", id=EventId(1, 2)), *whole(2)[1:]],
        "1-2 follows 2-0",
    ),
}


@pytest.mark.parametrize("name", FOLLOWER_SAW)
def test_a_follower_who_saw_something_else_is_named_with_the_rule(name: str) -> None:
    events, rule = FOLLOWER_SAW[name]
    found = judge(JOB, facts(followers={"client 2": Followed(whole()), "sse 1": Followed(events)}))
    assert found
    assert {breach.follower for breach in found} == {"sse 1"}
    assert any(rule in breach.rule for breach in found), found


def _of(job: PlannedJob = JOB, /, *, who: str, rule: str, **changes: object) -> tuple[PlannedJob, Facts, str, str]:
    return job, facts(**changes), who, rule


CANCELLED = numbered([Meta(), TextDelta("One "), Done("cancelled", 4)])
EXPIRED = numbered([Meta(), Done("expired", 0)])
TOOLS = replace(JOB, scripted={"tool_calls": CALLS})

BROKEN: dict[str, tuple[PlannedJob, Facts, str, str]] = {
    "a follower is told that the job is not there": _of(
        followers={"sse 1": Followed([], gone="job_not_found")}, who="sse 1", rule="was told job_not_found"
    ),
    "a follower with a cursor misses the next event": _of(
        followers={"sse 1": Followed(whole()[4:], after=EventId(1, 2))}, who="sse 1", rule="1-4 follows 1-2"
    ),
    "a job is done whose text is not whole": _of(
        log=[*whole()[:3], *numbered([whole()[4], Done("stop", 8)], start=3)],
        followers={},
        who=LOG,
        rule="the text differs from what the provider sent at character 8",
    ),
    "a failed job shows a text that nobody sent": _of(
        log=numbered([Meta(), TextDelta("None "), *failed()[2:3], Done("error", 5)]),
        status=status(state="failed", finish_reason="error", failures=3, attempt_errors=[{}, {}, {}]),
        followers={},
        who=LOG,
        rule="the text differs",
    ),
    "a failed job has no error before its done": _of(
        log=numbered([Meta(), Done("error", 0)]),
        status=status(state="failed", finish_reason="error", failures=3, attempt_errors=[{}, {}, {}]),
        followers={},
        who=LOG,
        rule="there is no error before its done",
    ),
    "a job fails although attempts are left": _of(
        log=failed(),
        status=status(state="failed", finish_reason="error", failures=1, attempt_errors=[{}], error={"code": "stall"}),
        followers={},
        who=RECORD,
        rule="after 1 of 3 attempts",
    ),
    "a job fails by a bug of ours": _of(
        log=failed(),
        status=status(
            state="failed",
            failures=3,
            attempt_errors=[{}, {}, {}],
            error={"code": "server_error", "message": "internal error of the worker"},
        ),
        followers={},
        who=RECORD,
        rule="internal error of the worker",
    ),
    "a refusal comes with another code": _of(
        replace(JOB, refusal="quota"),
        log=failed(),
        status=status(state="failed", error={"code": "rate_limit"}),
        followers={},
        who=RECORD,
        rule="the provider refused it with quota",
    ),
    "a job is cancelled that nobody cancelled": _of(
        log=CANCELLED, status=status(state="cancelled"), followers={}, who=RECORD, rule="nobody did that"
    ),
    "a cancel that was promised is forgotten": _of(
        replace(JOB, cancel_after=0.0),
        cancelled=CancelOutcome("cancelling", cancelled=True),
        who=RECORD,
        rule="the cancel answered cancelling, and the job ended as done",
    ),
    "a job expires that was to wait": _of(
        log=EXPIRED, status=status(state="expired", started=None), followers={}, who=RECORD, rule="wait for ever"
    ),
    "a job expires that has started": _of(
        replace(JOB, spec={"expires_in": 1.0}),
        log=EXPIRED,
        status=status(state="expired"),
        followers={},
        who=RECORD,
        rule="it has expired, and had started",
    ),
    "the record does not end": _of(status=status(state="running"), who=RECORD, rule="the record says running"),
    "the finish reason is not the model's": _of(
        TOOLS,
        log=_tools(),
        followers={},
        requests=[request(tool_calls=[_sent('{"x":1}')])],
        status=status(finish_reason="stop"),
        who=RECORD,
        rule="it ended with stop, the model with tool_calls",
    ),
    "a tool call lost an argument": _of(
        TOOLS,
        log=_tools('{"x":'),
        followers={},
        requests=[request(tool_calls=[_sent('{"x":')])],
        status=status(finish_reason="tool_calls"),
        who=LOG,
        rule="its tool calls are",
    ),
    "the usage is not what the provider reported": _of(
        requests=[request(usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})],
        who=PROVIDER,
        rule="the usage differs",
    ),
    "the provider did not send what the job says": _of(
        requests=[request("One two")], who=PROVIDER, rule="the provider sent 'One two'"
    ),
    "the provider was asked twice at once": _of(
        twice=[Overlap(request(), request(), 1.5)], who=PROVIDER, rule="was asked twice at once, for 1.50 s"
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found_and_named(name: str) -> None:
    job, known, who, rule = BROKEN[name]
    found = judge(job, known)
    assert any(breach.follower == who and rule in breach.rule for breach in found), found


@pytest.mark.parametrize(("failures", "errors"), [(2, [{"attempt": 1}]), (0, [{"attempt": 1}]), (1, [{"attempt": 0}])])
def test_a_record_counts_the_attempts_whose_failures_it_lists(failures: int, errors: list[dict[str, int]]) -> None:
    assert failure_problems(status(failures=failures, attempt_errors=errors)) != []


def test_an_entry_that_was_no_job_has_no_attempt_that_failed() -> None:
    assert failure_problems(status(failures=0, attempt_errors=[{"attempt": 0}])) == []
    assert failure_problems(status(failures=2, attempt_errors=[{"attempt": 1}, {"attempt": 12}])) == []
