"""What a stream amounts to does not hang on how it was cut."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given

from deltafan.coalesce import coalesce
from deltafan.events import Done, Error, Event, Meta, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, ToolResult
from deltafan.transcript import Transcript
from tests.unit.strategies import numbered, streams


def _of(events: Iterable[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript


@given(streams)
def test_a_merged_stream_amounts_to_the_same(events: list[Event]) -> None:
    assert _of(coalesce(events)) == _of(events)
    log = numbered(events)
    assert _of(coalesce(log)) == _of(log)


def test_a_restart_voids_what_was_said_and_a_continuation_does_not() -> None:
    said = [Meta(), ReasoningDelta("hm"), TextDelta("one "), RefusalDelta("no"), ToolCallDelta(0, "{}", "a", "f")]
    result = ToolResult("a", "f", 1)
    gone_on = _of([*said, result, Error(), Meta(attempt=2, continued=True), TextDelta("two")])
    assert (gone_on.text, gone_on.reasoning, gone_on.refusal, len(gone_on.tool_calls)) == ("one two", "hm", "no", 1)
    assert (gone_on.attempt, gone_on.error, gone_on.tool_results) == (2, None, [result])
    anew = _of([*said, result, Error(), Meta(attempt=2, restart=True), TextDelta("two")])
    assert (anew.text, anew.reasoning, anew.refusal, anew.tool_calls, anew.tool_results) == ("two", "", "", [], [])


def test_pieces_of_parallel_calls_find_their_call() -> None:
    pieces = [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(1, '{"', "b", "g"),
        ToolCallDelta(0, "{}"),
        ToolCallDelta(1, 'x":1}'),
    ]
    assert [(c.id, c.name, c.arguments) for c in _of(pieces).tool_calls] == [("a", "f", "{}"), ("b", "g", '{"x":1}')]


def test_a_later_turn_that_counts_its_calls_from_0_again_begins_new_ones() -> None:
    pieces = [ToolCallDelta(0, "{}", "a", "f"), ToolResult("a", "f", 1), ToolCallDelta(0, "[]", "b", "f"), Done()]
    assert [(c.id, c.arguments) for c in _of(pieces).tool_calls] == [("a", "{}"), ("b", "[]")]


def test_other_choices_are_left_out() -> None:
    assert _of([TextDelta("a"), TextDelta("b", choice=1), TextDelta("c")]).text == "ac"
