from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltafan import sse
from deltafan.sse import Decoder, EventTooLargeError, ServerSentEvent

BOM = b"\xef\xbb\xbf"


def reference(stream: bytes) -> tuple[list[ServerSentEvent], str, int | None]:
    """The standard's algorithm, as plainly as it can be said, over a whole stream: events, last id, retry."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))[:-1]
    events: list[ServerSentEvent] = []
    data, event, last_id, retry = b"", "", "", None
    for line in lines:
        if line == b"":
            if data != b"":
                events.append(ServerSentEvent(data[:-1], event or "message", last_id))
            data, event = b"", ""
            continue
        if line.startswith(b":"):
            continue
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            data += value + b"\n"
        elif name == b"event":
            event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            last_id = value.decode("utf-8", "replace")
        elif name == b"retry" and re.fullmatch(rb"[0-9]{1,15}", value):
            retry = int(value)
    return events, last_id, retry


TEXTS = (
    b"", b" ", b"x", b'{"a":1}', b"  two", b"\xe2\x80\xa8", b"\xc2\x85\x0b\x0c\x1c", b"\0", b"\xed\xa0\x80",
    b"\xff\xfe", BOM, b"a:b", "höhe 🎈".encode(), b"[DONE]", b"12", b"9" * 20, b"data: x",
)  # fmt: skip
FIELDS = (b"data", b"data", b"data", b"event", b"id", b"retry", b"", b"unknown", b"dat", b"data ")
lines = st.one_of(
    st.builds(
        lambda name, colon, value: name + colon + value,
        st.sampled_from(FIELDS),
        st.sampled_from((b":", b": ", b"")),
        st.sampled_from(TEXTS),
    ),
    st.just(b""),
    st.binary(max_size=6),
)
streams = st.builds(
    lambda bom, parts: bom + b"".join(parts),
    st.sampled_from((b"", b"", BOM, BOM[:2])),
    st.lists(
        st.one_of(
            st.builds(lambda line, end: line + end, lines, st.sampled_from((b"\n", b"\n\n", b"\r", b"\r\n", b"\r\r"))),
            st.just(b'data: {"choices":[]}\n\n'),
            lines,
        ),
        max_size=14,
    ),
)


def fed(stream: bytes, cuts: list[int]) -> tuple[list[ServerSentEvent], Decoder]:
    decoder = Decoder()
    events: list[ServerSentEvent] = []
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        events += decoder.feed(stream[at:cut])
        at = cut
    return events, decoder


@given(streams, st.lists(st.integers(0, 200), max_size=12))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 9, 10])
@example(b"data: a\r\ndata: b\r\n\r\n", [8])
@example(BOM + b"data: a\n\n", [1, 2])
@example(b"data: a\n\n\ndata: b\n\n", [8])
@settings(max_examples=600, deadline=None)
def test_any_split_of_any_stream_decodes_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    events, decoder = fed(stream, [min(cut, len(stream)) for cut in cuts])
    assert (events, decoder.last_event_id, decoder.retry) == reference(stream)


@given(streams)
@settings(max_examples=200, deadline=None)
def test_byte_by_byte_equals_all_at_once(stream: bytes) -> None:
    whole, _ = fed(stream, [])
    single, _ = fed(stream, list(range(len(stream))))
    assert single == whole


@given(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from((None, "delta", "ä")), st.sampled_from((None, "1-2"))))
)
def test_what_is_encoded_decodes_to_the_same(events: list[tuple[bytes, str | None, str | None]]) -> None:
    stream = b"".join(sse.encode(data, event=event, id=id_) for data, event, id_ in events)
    decoded, _ = fed(stream, [])
    assert [(event.data, event.event) for event in decoded] == [(data, event or "message") for data, event, _ in events]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [ServerSentEvent(b"YHOO\n+2\n10")]),
        (b"data\n\ndata\ndata\n\ndata:", [ServerSentEvent(b""), ServerSentEvent(b"\n")]),
        (b"data:test\n\ndata: test\n\n", [ServerSentEvent(b"test")] * 2),
        (b": comment\n\ndata: a\nid: 1\n\ndata: b\nid\n\n", [ServerSentEvent(b"a", id="1"), ServerSentEvent(b"b")]),
        (b"id: 7\n\ndata: a\n\n", [ServerSentEvent(b"a", id="7")]),
        (b"id: 1\0\ndata: a\n\n", [ServerSentEvent(b"a")]),
        (b"event: lost\n\ndata: a\n\n", [ServerSentEvent(b"a")]),
        (b"event: delta\ndata: a\n\ndata: b\n\n", [ServerSentEvent(b"a", "delta"), ServerSentEvent(b"b")]),
        ("data: a\u2028b\u2029c\x85d\n\n".encode(), [ServerSentEvent("a\u2028b\u2029c\x85d".encode())]),
        (b"data: cut", []),
    ],
)
def test_examples_of_the_standard(stream: bytes, expected: list[ServerSentEvent]) -> None:
    assert fed(stream, [])[0] == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: [DONE]", [b"[DONE]"]),
        (b"data: [DONE]\n", [b"[DONE]"]),
        (b"data: a\n\ndata: b\ndata: c", [b"b\nc"]),
        (BOM + b"data: a", [b"a"]),
        (b"data: a\n\n", []),
        (b": comment", []),
        (b"", []),
    ],
)
def test_flush_gives_the_event_that_the_end_left_unfinished(stream: bytes, expected: list[bytes]) -> None:
    _, decoder = fed(stream, [])
    assert [event.data for event in decoder.flush()] == expected
    assert decoder.flush() == []


@pytest.mark.parametrize("ends", [b"", b"\n", b"\n\n"])
@pytest.mark.parametrize("step", [7, 10_000])
@pytest.mark.parametrize("line", [b"data: " + b"x" * 100, b": " + b"x" * 100, b"\n".join([b"data: x"] * 20)])
def test_an_event_over_the_bound_is_an_error_however_it_arrives(line: bytes, step: int, ends: bytes) -> None:
    decoder = Decoder(max_event_bytes=100)
    stream = line + ends
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    with pytest.raises(EventTooLargeError, match="larger than 100 bytes"):
        [decoder.feed(piece) for piece in pieces]


def test_the_bound_is_on_one_event_not_on_the_stream() -> None:
    decoder = Decoder(max_event_bytes=100)
    assert len(decoder.feed(b"data: 0123456789\n\n" * 1000)) == 1000


def test_data_with_line_ends_becomes_several_data_lines() -> None:
    assert sse.encode(b"a\nb\r\nc\rd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


def test_the_id_comes_before_the_event_and_the_data() -> None:
    assert sse.encode(b"{}", event="done", id="1-5") == b"id: 1-5\nevent: done\ndata: {}\n\n"


@pytest.mark.parametrize(("field", "value"), [("id", "a\nb"), ("id", "a\rb"), ("id", "a\0b"), ("event", "a\nb")])
def test_what_the_format_cannot_carry_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        sse.encode(b"x", **{field: value})


def test_comments_and_retry_dispatch_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(sse.comment("keep\nalive") + sse.comment() + sse.retry(2500)) == []
    assert decoder.retry == 2500
    with pytest.raises(ValueError, match="negative"):
        sse.retry(-1)
