"""Coalescing merges adjacent deltas, and changes nothing else."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.coalesce import MAX_RUN_CHARS, coalesce
from deltafan.events import Done, Event, EventId, Meta, TextDelta, ToolCallDelta, Usage
from tests.oracle import check_order
from tests.unit.strategies import numbered, streams


def _lane(event: Event) -> Any:
    """What may merge with what: kind, choice and tool call."""
    match event:
        case ToolCallDelta():
            return (event.type, event.choice, event.index)
        case _ if hasattr(event, "text"):
            return (event.type, event.choice)
        case _:
            return None


def _piece(event: Event) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else getattr(event, "text", "")


def _runs(events: list[Event]) -> list[tuple[Any, str]]:
    """The stream as runs of one lane, each with its whole text; an event that is no delta stands alone."""
    out: list[tuple[Any, str]] = []
    for lane, group in groupby(events, key=lambda e: _lane(e) or object()):
        members = list(group)
        out.append((lane, "".join(map(_piece, members))) if _lane(members[0]) else (members[0], ""))
    return out


@given(streams)
def test_no_character_is_lost_moved_or_carried_across_another_event(events: list[Event]) -> None:
    assert _runs(list(coalesce(events))) == _runs(events)


@given(streams)
def test_ids_and_names_of_tool_calls_stay_at_their_place(events: list[Event]) -> None:
    def begins(stream: list[Event]) -> list[Any]:
        return [(e.call_id, e.name, e.index) for e in stream if isinstance(e, ToolCallDelta) and (e.call_id or e.name)]

    assert begins(list(coalesce(events))) == begins(events)


@given(streams)
def test_what_is_merged_is_merged_as_far_as_it_goes(events: list[Event]) -> None:
    merged = list(coalesce(events))
    for one, next_one in pairwise(merged):
        begins_a_call = isinstance(next_one, ToolCallDelta) and (
            next_one.call_id is not None or next_one.name is not None
        )
        assert _lane(one) is None or _lane(one) != _lane(next_one) or begins_a_call


@given(streams)
def test_merging_again_changes_nothing(events: list[Event]) -> None:
    for stream in (events, numbered(events)):
        once = list(coalesce(stream))
        assert list(coalesce(once)) == once


@given(streams)
def test_a_merged_event_stands_for_the_run_from_its_first_to_its_id(events: list[Event]) -> None:
    log = numbered([Meta(), *events])
    merged = list(coalesce(log))
    check_order(merged)
    by_id = {event.id: event for event in log}
    places = {event.id: place for place, event in enumerate(log)}
    for event in merged:
        assert event.id is not None
        first = event.first or event.id
        run = log[places[first] : places[event.id] + 1]
        assert {e.id.attempt for e in run if e.id} == {event.id.attempt}
        if len(run) == 1:
            assert event == by_id[event.id]
        else:
            assert event.first == run[0].id
            assert _piece(event) == "".join(map(_piece, run))


@given(streams, st.integers(0, 30))
def test_a_stream_that_is_merged_in_parts_can_be_merged_further(events: list[Event], cut: int) -> None:
    log = numbered(events)
    parts = [*coalesce(log[:cut]), *coalesce(log[cut:])]
    assert list(coalesce(parts)) == list(coalesce(log))


def test_a_new_attempt_ends_a_run_even_where_its_meta_is_not_seen() -> None:
    events = [TextDelta("a", id=EventId(1, 5)), TextDelta("b", id=EventId(2, 1))]
    assert list(coalesce(events)) == events


def test_a_run_is_bounded() -> None:
    piece = "x" * (MAX_RUN_CHARS // 4)
    merged = list(coalesce(TextDelta(piece) for _ in range(10)))
    assert [len(_piece(event)) for event in merged] == [MAX_RUN_CHARS, MAX_RUN_CHARS, 2 * len(piece)]


@pytest.mark.parametrize("event", [Meta(), Usage(), Done()])
def test_an_event_that_is_no_delta_passes_as_it_is(event: Event) -> None:
    assert list(coalesce([event])) == [event]
