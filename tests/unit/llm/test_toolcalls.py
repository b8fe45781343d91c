from __future__ import annotations

from typing import Any

from deltafan.events import ToolCallDelta
from deltafan.llm.decode import ChunkDecoder
from tests.unit.llm.server import delta


def pieces(*calls: dict[str, Any] | list[dict[str, Any]], **fields: Any) -> list[Any]:
    decoder = ChunkDecoder()
    events: list[Any] = []
    for call in calls:
        events += decoder.decode(delta(tool_calls=call if isinstance(call, list) else [call]))
    if fields:
        events += decoder.decode(delta(**fields))
    return events


def call(
    index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    piece: dict[str, Any] = {"function": {}}
    if index is not None:
        piece["index"] = index
    if call_id is not None:
        piece |= {"id": call_id, "type": "function"}
    if name is not None:
        piece["function"]["name"] = name
    if arguments is not None:
        piece["function"]["arguments"] = arguments
    return piece


def test_id_and_name_come_first_and_once_then_the_arguments() -> None:
    assert pieces(call(0, "a", "f", ""), call(0, arguments='{"x'), call(0, arguments='":1}')) == [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(0, '{"x'),
        ToolCallDelta(0, '":1}'),
    ]


def test_parallel_calls_are_told_apart_by_index() -> None:
    assert pieces(call(0, "a", "f", ""), call(1, "b", "g", ""), call(0, arguments="1"), call(1, arguments="2")) == [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(1, "", "b", "g"),
        ToolCallDelta(0, "1"),
        ToolCallDelta(1, "2"),
    ]


def test_id_and_name_on_every_piece_are_given_once() -> None:
    assert pieces(call(0, "a", "f", "1"), call(0, "a", "f", "2")) == [
        ToolCallDelta(0, "1", "a", "f"),
        ToolCallDelta(0, "2"),
    ]


def test_a_new_id_on_every_piece_does_not_make_new_calls() -> None:
    assert pieces(call(0, "a", "f", "1"), call(0, "b", arguments="2")) == [
        ToolCallDelta(0, "1", "a", "f"),
        ToolCallDelta(0, "2"),
    ]


def test_empty_id_and_name_on_later_pieces_are_nothing() -> None:
    assert pieces(call(0, "a", "f", ""), call(0, "", "", "1")) == [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(0, "1"),
    ]


def test_without_index_a_new_id_is_a_new_call_and_the_rest_belongs_to_the_last() -> None:
    assert pieces(
        call(call_id="a", name="f"), call(arguments="1"), call(call_id="b", name="g"), call(arguments="2")
    ) == [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(0, "1"),
        ToolCallDelta(1, "", "b", "g"),
        ToolCallDelta(1, "2"),
    ]


def test_without_index_a_known_id_finds_its_call() -> None:
    assert pieces(call(call_id="a", name="f"), call(call_id="b", name="g"), call(call_id="a", arguments="1")) == [
        ToolCallDelta(0, "", "a", "f"),
        ToolCallDelta(1, "", "b", "g"),
        ToolCallDelta(0, "1"),
    ]


def test_without_index_and_id_a_name_begins_a_call() -> None:
    assert pieces([call(name="f", arguments="1"), call(name="g", arguments="2")]) == [
        ToolCallDelta(0, "1", None, "f"),
        ToolCallDelta(1, "2", None, "g"),
    ]


def test_calls_that_are_all_numbered_0_are_told_apart_by_id() -> None:
    assert pieces(call(0, "a", "f", "1"), call(0, "b", "g", "2"), call(0, arguments="3"), call(1, "c", "h", "4")) == [
        ToolCallDelta(0, "1", "a", "f"),
        ToolCallDelta(1, "2", "b", "g"),
        ToolCallDelta(1, "3"),
        ToolCallDelta(2, "4", "c", "h"),
    ]


def test_an_id_that_comes_late_is_given_when_it_comes() -> None:
    assert pieces(call(0, name="f"), call(0, "a", arguments="1")) == [
        ToolCallDelta(0, "", None, "f"),
        ToolCallDelta(0, "1", "a"),
    ]


def test_arguments_as_an_object_become_json() -> None:
    assert pieces(call(0, "a", "f", {"x": 1})) == [ToolCallDelta(0, '{"x":1}', "a", "f")]


def test_null_arguments_and_empty_pieces_yield_no_text() -> None:
    assert pieces(call(0, "a", "f"), call(0), {"index": 0, "function": None}) == [ToolCallDelta(0, "", "a", "f")]


def test_the_legacy_function_call_is_call_0() -> None:
    decoder = ChunkDecoder()
    events = decoder.decode(delta(function_call={"name": "f", "arguments": ""}))
    events += decoder.decode(delta(function_call={"arguments": "{}"}))
    decoder.decode(delta("function_call"))
    assert events == [ToolCallDelta(0, "", None, "f"), ToolCallDelta(0, "{}")]
    assert decoder.finish_reason == "tool_calls"


def test_a_custom_tool_call_carries_its_input_as_arguments() -> None:
    piece = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    assert pieces(piece) == [ToolCallDelta(0, "select 1", "a", "sql")]


def test_calls_of_different_choices_do_not_mix() -> None:
    decoder = ChunkDecoder()
    events = decoder.decode(delta(tool_calls=[call(0, "a", "f")], index=0))
    events += decoder.decode(delta(tool_calls=[call(0, "b", "g")], index=1))
    assert events == [ToolCallDelta(0, "", "a", "f"), ToolCallDelta(0, "", "b", "g", choice=1)]
