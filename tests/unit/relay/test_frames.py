from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from deltafan.broker.follow import reset_frame
from deltafan.broker.log import Entry
from deltafan.events import EventId, TextDelta
from deltafan.relay.client import REPLAY_BYTES, _pieces
from deltafan.relay.frames import bare, chunked, event_chunk, heartbeat_chunk
from deltafan.sse import Decoder
from deltafan.wire import encode


def entry(seq: int, text: str) -> Entry:
    return Entry.of(encode("0-a", EventId(1, seq), TextDelta(text=text)))


def test_a_frame_is_encoded_once_and_the_same_object_goes_to_every_client() -> None:
    one = entry(5, "Hel")
    assert event_chunk(one) is event_chunk(one)
    assert bare(event_chunk(one)) == (
        b'id: 1-5\nevent: text_delta\ndata: {"v":1,"job":"0-a","id":"1-5","type":"text_delta","text":"Hel"}\n\n'
    )


@given(st.binary(max_size=300))
def test_a_chunk_holds_its_frame_and_says_its_length(frame: bytes) -> None:
    chunk = chunked(frame)
    size, _, rest = chunk.partition(b"\r\n")
    assert int(size, 16) == len(frame)
    assert rest == frame + b"\r\n"
    assert bare(chunk) == frame


@given(st.text(max_size=50))
def test_a_reader_gets_the_bytes_of_the_log_whatever_the_text(text: str) -> None:
    one = entry(1, text)
    (event,) = Decoder().feed(bare(event_chunk(one)))
    assert (event.data, event.event, event.id) == (one.data, "text_delta", "1-1")


def test_heartbeat_and_reset_have_no_id() -> None:
    heartbeat = bare(heartbeat_chunk(1_700_000_000_000))
    assert heartbeat == b'event: heartbeat\ndata: {"v":1,"type":"heartbeat","time":1700000000000}\n\n'
    (event,) = Decoder().feed(reset_frame("0-a", "cursor_ahead"))
    assert (event.event, event.id) == ("reset", "")
    assert orjson.loads(event.data) == {"v": 1, "job": "0-a", "type": "reset", "reason": "cursor_ahead"}


@given(st.lists(st.integers(0, 3 * REPLAY_BYTES), max_size=12))
def test_a_replay_is_written_in_pieces_that_lose_nothing_and_end_with_their_last_entry(sizes: list[int]) -> None:
    entries = [entry(seq, "x" * size) for seq, size in enumerate(sizes)]
    pieces = list(_pieces(entries, REPLAY_BYTES))
    assert b"".join(piece for piece, _ in pieces) == b"".join(bare(event_chunk(e)) for e in entries)
    for piece, last in pieces:
        assert piece.endswith(bare(event_chunk(last)))
        assert len(piece) < REPLAY_BYTES + len(bare(event_chunk(last)))
