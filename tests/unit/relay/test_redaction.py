"""What `hide` takes out of events, and that nothing gets past it."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.broker.log import Entry
from deltafan.events import (
    EVENT_CLASSES,
    Event,
    EventId,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolResult,
)
from deltafan.relay.frames import bare, event_chunk
from deltafan.relay.redaction import is_hidden, shown
from deltafan.sse import Decoder
from deltafan.tokens import HIDDEN, Hidden
from deltafan.wire import decode, encode

SECRET = "do not show"


def entry(event: Event, seq: int = 5, first: EventId | None = None) -> Entry:
    return Entry.of(encode("0-a", EventId(1, seq), event, first))


def test_what_can_be_hidden_is_what_the_type_says() -> None:
    assert get_args(Hidden) == HIDDEN


@pytest.mark.parametrize(
    ("part", "event", "left"),
    [
        ("reasoning", ReasoningDelta(text=SECRET, choice=1), {"text": "", "choice": 1}),
        (
            "tool_arguments",
            ToolCallDelta(index=2, arguments=SECRET, call_id="c", name="look"),
            {"index": 2, "arguments": "", "call_id": "c", "name": "look"},
        ),
        ("tool_results", ToolResult(call_id="c", name="look", result={SECRET: [SECRET]}),
         {"call_id": "c", "name": "look", "result": None}),
        ("tool_results", ToolResult(call_id="c", name="look", error=SECRET),
         {"call_id": "c", "name": "look", "error": ""}),
    ],
)  # fmt: skip
def test_an_events_content_is_blank_and_its_place_stays(part: Hidden, event: Event, left: dict[str, Any]) -> None:
    one = entry(event, first=EventId(1, 3))
    head = {"v": 1, "job": "0-a", "id": "1-5", "first": "1-3", "type": event.type}
    assert orjson.loads(shown(one, frozenset({part}))) == head | left | {"hidden": True}
    assert decode(shown(one, frozenset({part}))), "readers of our own understand it"
    for other in set(HIDDEN) - {part}:
        assert shown(one, frozenset({other})) is one.data


@pytest.mark.parametrize("hide", [frozenset(), *(frozenset({part}) for part in HIDDEN), frozenset(HIDDEN)])
def test_an_answer_itself_is_never_hidden(hide: frozenset[Hidden]) -> None:
    for event in (TextDelta(text="a"), RefusalDelta(text="b")):
        assert shown(entry(event), hide) is entry(event).data or shown(entry(event), hide) == entry(event).data


def test_every_type_of_event_has_been_thought_of() -> None:
    hidden = {name for name in EVENT_CLASSES if is_hidden(name, frozenset(HIDDEN))}
    assert hidden == {"reasoning_delta", "tool_call_delta", "tool_result"}


@pytest.mark.parametrize("part", HIDDEN)
def test_a_type_of_a_later_version_shows_its_place_only_to_who_has_anything_hidden(part: Hidden) -> None:
    data = orjson.dumps({"v": 1, "job": "0-a", "id": "1-5", "type": "thought", "name": SECRET, "more": SECRET})
    one = Entry.of(data)
    assert orjson.loads(shown(one, frozenset({part}))) == {
        "v": 1, "job": "0-a", "id": "1-5", "type": "thought", "hidden": True,
    }  # fmt: skip
    assert shown(one, frozenset()) is data


def test_frames_for_who_sees_all_and_for_who_does_not_never_mix_whoever_comes_first() -> None:
    for order in ((True, False, True), (False, True, False)):
        one = entry(ReasoningDelta(text=SECRET))
        for hides in order:
            chunk = event_chunk(one, frozenset({"reasoning"}) if hides else frozenset())
            assert (SECRET.encode() in chunk) is not hides
            (event,) = Decoder().feed(bare(chunk))
            assert (event.id, event.event) == ("1-5", "reasoning_delta")


def test_a_blanked_frame_is_encoded_once_for_all_who_have_the_same_hidden() -> None:
    one, hide = entry(ReasoningDelta(text=SECRET)), frozenset({"reasoning"})
    assert event_chunk(one, hide) is event_chunk(one, hide)  # type: ignore[arg-type]


@given(st.text(min_size=1, max_size=40), st.sampled_from([ReasoningDelta, ToolCallDelta, ToolResult]))
def test_whatever_the_content_nothing_of_it_is_left(content: str, kind: type[Event]) -> None:
    fields = {ReasoningDelta: "text", ToolCallDelta: "arguments", ToolResult: "result"}
    secret, blank = kind(**{fields[kind]: content}), kind()  # type: ignore[index]
    assert shown(entry(secret), frozenset(HIDDEN)) == shown(entry(blank), frozenset(HIDDEN))
