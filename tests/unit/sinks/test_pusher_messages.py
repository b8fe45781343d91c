"""What fits Pusher: every message within its limit, and nothing lost by cutting."""

from __future__ import annotations

import base64
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pusher.crypto import encrypt

from deltafan.events import Event, EventId, Meta, ReasoningDelta, TextDelta, ToolCallDelta, ToolResult
from deltafan.sinks.pusher.messages import DATA_MAX, ENCRYPTED_MAX, limit_of, messages_of
from deltafan.wire import decode, encode, schema

JOB = "0-01a1f8c1413c5455812d9406fafa"
ID = EventId(1, 5)
SCHEMA = Draft202012Validator(schema())
ALPHABET = st.sampled_from('a"\\\n\x01é模🌊\u2028')


@given(st.text(ALPHABET, max_size=60), st.integers(1, 400), st.sampled_from([DATA_MAX, ENCRYPTED_MAX]))
def test_the_pieces_of_a_delta_fit_and_join_to_its_text(text: str, times: int, limit: int) -> None:
    event = TextDelta(text=text * times, id=ID, first=EventId(1, 3), choice=2)
    messages = messages_of(JOB, event, ID, limit)
    assert all(len(message.data.encode()) <= limit for message in messages)
    assert all(SCHEMA.is_valid(orjson.loads(message.data)) for message in messages)
    assert [message.last for message in messages] == [False] * (len(messages) - 1) + [True]
    pieces = [orjson.loads(message.data) for message in messages]
    assert "".join(piece["text"] for piece in pieces) == event.text
    assert {(piece["id"], piece["first"], piece["type"], piece["choice"]) for piece in pieces} == {
        ("1-5", "1-3", "text_delta", 2)
    }
    if len(pieces) > 1:
        assert [(piece["part"], piece["parts"]) for piece in pieces] == [(n, len(pieces)) for n in range(len(pieces))]
    else:
        assert "part" not in pieces[0]


def test_a_delta_is_cut_no_oftener_than_it_must_be() -> None:
    assert len(messages_of(JOB, TextDelta(text="x" * 20_000, id=ID), ID, DATA_MAX)) == 2


@pytest.mark.parametrize("text", ["x" * 50_000, "\x01" * 9_000, "🌊" * 9_000, '"' * 30_000])
def test_a_page_that_only_appends_gets_the_whole_text(text: str) -> None:
    messages = messages_of(JOB, ReasoningDelta(text=text), ID, DATA_MAX)
    assert {message.name for message in messages} == {"reasoning_delta"}
    assert "".join(json.loads(message.data)["text"] for message in messages) == text


def test_only_the_first_piece_of_a_tool_call_names_it() -> None:
    call = ToolCallDelta(index=3, call_id="call_1", name="search", arguments="{" + "y" * 30_000)
    pieces = [json.loads(message.data) for message in messages_of(JOB, call, ID, DATA_MAX)]
    assert [(piece.get("call_id"), piece.get("name"), piece["index"]) for piece in pieces] == [
        ("call_1", "search", 3),
        *[(None, None, 3)] * (len(pieces) - 1),
    ]
    assert "".join(piece["arguments"] for piece in pieces) == call.arguments


@given(
    st.integers(0, 25_000), st.integers(0, 15_000), st.integers(0, 12_000), st.sampled_from([DATA_MAX, ENCRYPTED_MAX])
)
def test_a_tool_call_of_any_size_comes_whole(name: int, call_id: int, arguments: int, limit: int) -> None:
    """A name that leaves no room for a piece of the arguments: the call goes in chunks."""
    call = ToolCallDelta(index=1, call_id="c" * call_id, name="n" * name, arguments="é" * arguments)
    messages = messages_of(JOB, call, ID, limit)
    assert all(len(message.data.encode()) <= limit for message in messages)
    raw = [json.loads(message.data) for message in messages]
    if messages[0].name == "chunk":
        assert decode("".join(piece["data"] for piece in raw)) == decode(encode(JOB, ID, call))
    else:
        assert "".join(piece["arguments"] for piece in raw) == call.arguments
        assert (raw[0].get("call_id"), raw[0].get("name")) == (call.call_id, call.name)


@given(st.text(ALPHABET, min_size=1, max_size=60), st.integers(300, 900), st.sampled_from([DATA_MAX, ENCRYPTED_MAX]))
def test_the_chunks_of_any_other_event_fit_and_join_to_its_json(text: str, times: int, limit: int) -> None:
    event: Event = ToolResult(call_id="c", name="f", result={"text": text * times})
    messages = messages_of(JOB, event, ID, limit)
    assert all(len(message.data.encode()) <= limit for message in messages)
    assert all(SCHEMA.is_valid(orjson.loads(message.data)) for message in messages)
    if len(messages) == 1:
        assert messages[0].name == "tool_result"
        return
    chunks = [json.loads(message.data) for message in messages]
    assert {message.name for message in messages} == {"chunk"}
    assert {(c["v"], c["job"], c["id"], c["type"], c["of"], c["parts"]) for c in chunks} == {
        (1, JOB, "1-5", "chunk", "tool_result", len(chunks))
    }
    joined = "".join(chunk["data"] for chunk in sorted(chunks, key=lambda chunk: chunk["part"]))
    assert joined.encode() == encode(JOB, ID, event)
    assert decode(joined) == decode(encode(JOB, ID, event))


def test_what_fits_goes_as_the_log_has_it() -> None:
    event = Meta(model="m", id=ID)
    (message,) = messages_of(JOB, event, ID, DATA_MAX)
    assert (message.name, message.data.encode()) == ("meta", encode(JOB, ID, event))


def test_what_fills_an_encrypted_channels_limit_fills_pushers_limit_when_sealed() -> None:
    """About 7.6 KB: measured on the data as it is sent."""

    def sealed(size: int) -> int:
        return len(json.dumps(encrypt("private-encrypted-x", "a" * size, bytes(32))))

    assert limit_of("private-encrypted-x") == ENCRYPTED_MAX
    assert sealed(ENCRYPTED_MAX) <= DATA_MAX < sealed(ENCRYPTED_MAX + 4)
    assert limit_of("private-x") == DATA_MAX
    assert len(base64.b64encode(bytes(24))) == 32
