from __future__ import annotations

import pytest

from deltafan.chaos.sent import sent_problems
from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.devserver.provider.sent import CallPiece
from deltafan.events import Done, Event, EventId, Meta, TextDelta, ToolCallDelta, ToolResult, Usage

USED = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "cached_tokens": 0, "reasoning_tokens": 0}


def _record(
    text: str = "", *calls: CallPiece, started: float = 1.0, usage: dict[str, int] | None = USED, whole: bool = True
) -> RequestRecord:
    record = RequestRecord("a", started=started)
    record.sent([Piece(b"", True, text, calls=calls, usage=usage, finish_reason="stop" if whole else None)])
    return record


def _log(*events: Event, attempt: int = 1, reason: str = "stop", usage: Usage | None = None) -> list[Event]:
    last: list[Event] = [usage or Usage(2, 3, 5, 0, 0, source="reported"), Done(reason)]  # type: ignore[arg-type]
    return [Meta(id=EventId(attempt, 0), attempt=attempt), *events, *last]


def test_a_final_attempt_that_says_what_was_sent_has_no_problem() -> None:
    early = [Meta(id=EventId(1, 0)), TextDelta("Hel")]
    records = [_record("Hel", whole=False), _record("Hello", started=2.0)]
    assert sent_problems([*early, *_log(TextDelta("He"), TextDelta("llo"), attempt=2)], records) == []


@pytest.mark.parametrize("said", ["", "Hell", "HelloHello", "hello"])
def test_another_text_than_the_one_sent_is_a_problem(said: str) -> None:
    [problem] = sent_problems(_log(TextDelta(said)), [_record("Hello")])
    assert "the provider sent 'Hello' (5 characters)" in problem


def test_text_that_an_earlier_attempt_left_is_not_of_the_last_answer() -> None:
    events = [
        Meta(id=EventId(1, 0)),
        TextDelta("Hel"),
        Meta(id=EventId(2, 0), attempt=2, continued=True),
        TextDelta("lo"),
        *_log()[1:],
    ]
    assert sent_problems(events, [_record("Hello", whole=False), _record("lo", started=2.0)]) == []
    assert sent_problems(events, [_record("Hel", whole=False), _record("Hello", started=2.0)])


def test_each_turn_is_compared_with_its_own_answer() -> None:
    call = CallPiece(0, "c1", "look", '{"at":1}')
    turns: list[Event] = [ToolCallDelta(0, '{"at":1}', "c1", "look"), ToolResult("c1", "look", 4), TextDelta("Four.")]
    twice = Usage(4, 6, 10, 0, 0, source="reported")
    assert sent_problems(_log(*turns, usage=twice), [_record("", call), _record("Four.", started=2.0)]) == []
    other = CallPiece(0, "c1", "look", '{"at":2}')
    [problem] = sent_problems(_log(*turns, usage=twice), [_record("", other), _record("Four.", started=2.0)])
    assert "calls" in problem
    [problem] = sent_problems(_log(*turns, usage=twice), [_record("", call), _record("Five.", started=2.0)])
    assert "'Five.'" in problem
    assert "2 whole answers" in sent_problems(_log(*turns), [_record("Four.")])[0]
    assert sent_problems(_log(*turns), [_record("Four.")], forgotten=True) == []
    silent = _log(*turns[:2], usage=twice)
    assert sent_problems(silent, [_record("", call), _record("", started=2.0)]) == []


@pytest.mark.parametrize(
    ("usage", "sent", "problem"),
    [
        (Usage(2, 4, 6, 0, 0, source="reported"), USED, "completion_tokens 4, sent 3; total_tokens 6, sent 5"),
        (Usage(2, 3, 5, source="estimated"), USED, "the usage is estimated, and the provider reported it"),
        (Usage(2, 3, 5, 0, 0, source="reported"), None, "1 of 1 answers came without usage"),
        (Usage(2, 3, 5, source="estimated"), None, ""),
        (Usage(), None, ""),
    ],
)
def test_the_usage_is_the_one_sent_or_says_that_none_was(
    usage: Usage, sent: dict[str, int] | None, problem: str
) -> None:
    found = sent_problems(_log(TextDelta("Hello"), usage=usage), [_record("Hello", usage=sent)])
    assert problem in "".join(found)
    assert len(found) == bool(problem)


@pytest.mark.parametrize("reason", ["cancelled", "error", "expired"])
def test_nothing_is_said_of_an_attempt_that_did_not_take_the_whole_answer(reason: str) -> None:
    assert sent_problems(_log(TextDelta("He"), reason=reason), [_record("Hello")]) == []


def test_a_process_thought_lost_may_have_asked_last() -> None:
    records = [_record("lo", started=1.0), _record("Hello", started=2.0)]
    assert sent_problems(_log(TextDelta("lo")), records)
    assert sent_problems(_log(TextDelta("lo")), records, overlaps=True) == []
