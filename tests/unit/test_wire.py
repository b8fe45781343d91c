"""The wire format: any event goes through, readers that only peek agree, and the JSON Schema says the same."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deltafan.broker.log import Entry
from deltafan.errors import ValidationError
from deltafan.events import EVENT_CLASSES, Done, Event, EventId, Meta, TextDelta, ToolCallDelta, ToolResult, Usage
from deltafan.sse import encode as encode_sse
from deltafan.wire import MAX_ATTEMPT, decode, dumps, encode, parse_event_id, peek, schema
from tests.unit.strategies import AWKWARD, JOB, any_event, clean, texts

SCHEMA = Draft202012Validator(schema())
ids = st.builds(EventId, st.integers(1, MAX_ATTEMPT), st.integers(0, 10**18 - 1))


def _clean(event: Event) -> Event:
    return replace(
        event, **{f.name: clean(getattr(event, f.name)) for f in fields(event) if f.name not in ("id", "first")}
    )


@given(any_event, ids)
def test_any_event_comes_back_as_it_went(event: Event, event_id: EventId) -> None:
    data = encode(JOB, event_id, event)
    assert decode(data) == replace(_clean(event), id=event_id, job=JOB)
    assert decode(data.decode()) == decode(data)


@given(any_event, ids)
def test_who_peeks_sees_what_who_decodes_sees(event: Event, event_id: EventId) -> None:
    data = encode(JOB, event_id, event)
    assert peek(data) == (event_id, event.type)
    assert Entry.of(data).event() == decode(data)


@given(any_event, ids)
def test_every_event_is_valid_by_the_schema_that_ships(event: Event, event_id: EventId) -> None:
    value = orjson.loads(encode(JOB, event_id, event, EventId(event_id.attempt, 0)))
    assert list(SCHEMA.iter_errors(value)) == []


@given(any_event, ids)
def test_an_event_is_one_line(event: Event, event_id: EventId) -> None:
    data = encode(JOB, event_id, event)
    assert b"\n" not in data
    assert b"\r" not in data
    assert data.startswith(b'{"v":1,"job":"0-job","id":"%d-%d","type":"' % event_id)


@given(any_event, ids)
def test_it_goes_into_an_sse_frame_byte_for_byte(event: Event, event_id: EventId) -> None:
    data = encode(JOB, event_id, event)
    assert b"\ndata: " + data + b"\n" in b"\n" + encode_sse(data, event=event.type, id=str(event_id))


def test_a_merged_run_says_where_it_begins_and_a_single_event_does_not() -> None:
    merged = encode(JOB, EventId(1, 5), TextDelta("ab"), EventId(1, 4))
    assert peek(merged) == (EventId(1, 5), "text_delta")
    assert decode(merged) == TextDelta("ab", id=EventId(1, 5), first=EventId(1, 4), job=JOB)
    assert b"first" not in encode(JOB, EventId(1, 5), TextDelta("ab"), EventId(1, 5))


@pytest.mark.parametrize("text", AWKWARD)
def test_text_of_any_kind_survives(text: str) -> None:
    event = decode(encode(JOB, EventId(1, 1), TextDelta(text)))
    assert isinstance(event, TextDelta)
    assert event.text == clean(text)
    assert len(event.text) == len(text)


def test_halves_of_a_pair_become_one_replacement_each_wherever_they_stand() -> None:
    assert orjson.loads(dumps({"\ud83d": ["\ude00x", {"a": "\ud800"}]})) == {"\ufffd": ["\ufffdx", {"a": "\ufffd"}]}


def test_numbers_beyond_64_bits_become_text() -> None:
    assert orjson.loads(dumps([2**64, -(2**63) - 1, 2**64 - 1])) == [str(2**64), str(-(2**63) - 1), 2**64 - 1]


def test_zero_is_told_and_unknown_is_null() -> None:
    value = orjson.loads(encode(JOB, EventId(1, 1), Usage(prompt_tokens=0)))
    assert (value["prompt_tokens"], value["completion_tokens"], value["source"]) == (0, None, "unknown")


def test_what_says_nothing_is_left_out() -> None:
    assert encode(JOB, EventId(1, 1), ToolCallDelta(0, "{")) == (
        b'{"v":1,"job":"0-job","id":"1-1","type":"tool_call_delta","index":0,"arguments":"{"}'
    )
    assert b"choice" not in encode(JOB, EventId(1, 1), TextDelta("a"))
    assert b"restart" not in encode(JOB, EventId(1, 0), Meta())
    assert b'"result":null' in encode(JOB, EventId(1, 1), ToolResult("a", "f"))
    assert b"result" not in encode(JOB, EventId(1, 1), ToolResult("a", "f", 5, "failed")).replace(b"tool_result", b"")


@given(ids)
def test_an_id_reads_back(event_id: EventId) -> None:
    assert parse_event_id(str(event_id)) == event_id


@given(ids, ids)
def test_ids_order_by_attempt_then_seq(one: EventId, other: EventId) -> None:
    assert (one < other) == ((one.attempt, one.seq) < (other.attempt, other.seq))


@pytest.mark.parametrize(
    "text",
    ["", "1", "-", "1-", "-1", "0-1", "01-1", "1-01", "1--1", "1-1 ", " 1-1", "1-1\n", "a-b", "1-1-1", "+1-1", "1_0-1",
     "１-１", "$", "2147483648-0", "1-" + "9" * 19, "9" * 5000 + "-1", "\x00"],
)  # fmt: skip
def test_what_is_no_id_is_refused_with_the_fields_name(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_event_id(text, "cursor")
    assert refused.value.fields[0].field == "cursor"
    assert "<attempt>-<seq>" in str(refused.value)


@given(st.text(st.characters(), max_size=12))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    with suppress(ValidationError):
        assert str(parse_event_id(text)) == text


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", ""), (b"{", ""), (b"[]", ""), (b"5", ""), (b"\xff", ""), (b"{}", "type"), (b'{"v":1,"type":5}', "type"),
        (b'{"type":"done"}', "v"), (b'{"v":2,"type":"done"}', "v"), (b'{"v":1,"type":"done","id":"x"}', "id"),
        (b'{"v":1,"type":"done","id":"1-2","first":"0-0"}', "first"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_by_field(data: bytes, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        decode(data)
    assert refused.value.fields[0].field == field


@given(st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "replace")))
def test_foreign_bytes_are_refused_not_crashed_on(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says, it is a ValueError
        Entry.of(data)
    with pytest.raises(ValidationError):
        decode(data)


def test_a_reader_ignores_fields_and_types_that_it_does_not_know() -> None:
    known: dict[str, Any] = {"v": 1, "job": JOB, "id": "1-1", "type": "text_delta", "text": "a", "later": {"x": 1}}
    assert decode(orjson.dumps(known)) == TextDelta("a", id=EventId(1, 1), job=JOB)
    assert decode(orjson.dumps(known | {"type": "smell_delta"})) is None
    assert list(SCHEMA.iter_errors(known)) == []


def test_the_schema_knows_every_type_and_no_other() -> None:
    assert {part["$ref"].rpartition("/")[2] for part in schema()["oneOf"]} == {*EVENT_CLASSES, "chunk"}
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"id": "0-1"}, {"type": "nonsense"}, {"text_length": -1}, {"finish_reason": "bored"}, {"job": "x"}],
)
def test_the_schema_refuses_what_is_wrong(change: dict[str, Any]) -> None:
    value = orjson.loads(encode(JOB, EventId(1, 1), Done()))
    assert SCHEMA.is_valid(value)
    assert not SCHEMA.is_valid(value | change)
