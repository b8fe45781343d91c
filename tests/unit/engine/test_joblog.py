"""The job's log in memory: what is sent, what is kept, and what each answer of Redis means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.broker.claims import Claim
from deltafan.broker.intake import Taken
from deltafan.broker.scripts import Call
from deltafan.engine.joblog import EVENT_CHARS, MAX_BATCH, RENEW, JobLog
from deltafan.events import Event, EventId, Meta, TextDelta, ToolCallDelta, Usage
from deltafan.job import parse_spec
from deltafan.wire import decode, encode
from tests.oracle import check_order
from tests.unit.strategies import streams

JOB = "0-a"
META = encode(JOB, EventId(1, 0), Meta())


def _claim(attempt: int = 1, chars: int = 0) -> Claim:
    taken = Taken(0, "default", "normal", "1-0", JOB, {})
    spec = parse_spec({"model": "m", "prompt": "x", "channel": "own"})
    return Claim(
        taken, JOB, "w1", attempt, spec, True, 0, b"", "fresh", 0, 0, "default", META, False, False, chars
    )  # fmt: skip


class Wires:
    """A log, and who it talks to."""

    def __init__(self, *, buffer_bytes: int = 10_000, memory_bytes: int = 10_000, chars: int = 0) -> None:
        self.wakes = 0
        self.stops: list[str] = []
        self.log = JobLog(
            _claim(chars=chars), wake=self._wake, stop=self.stops.append, buffer_bytes=buffer_bytes,
            memory_bytes=memory_bytes, idle_ms=7000,
        )  # fmt: skip

    def _wake(self, log: JobLog) -> None:
        assert log is self.log
        self.wakes += 1

    def call(self, now: float = 0.0) -> Call:
        call = self.log.next_call(now)
        assert call is not None
        return call

    def land(self, seen: int = 0, now: float = 0.0) -> list[Event]:
        """Send what there is, and have it appended."""
        call = self.call(now)
        assert self.log.answered([b"appended", 0, 0, seen], now) is None
        return _events(call)


def _events(call: Call) -> list[Event]:
    found = []
    for data in call.args[7:]:
        assert isinstance(data, bytes)
        event = decode(data)
        assert event is not None
        found.append(event)
    return found


def _text(events: Sequence[Event]) -> str:
    return "".join(getattr(event, "text", "") for event in events)


def test_the_first_event_goes_at_once_and_what_comes_meanwhile_goes_as_one() -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    assert wires.wakes == 1
    first = wires.call()
    assert first.args[:7] == (1, "w1", 1, 1, 1, "", "own")
    for piece in "bcd":
        wires.log.emit(TextDelta(piece))
    assert wires.wakes == 1  # one append at a time
    wires.log.answered([b"appended", 1, 0, 0], 0.0)
    assert wires.wakes == 2
    assert [(str(e.id), _text([e])) for e in wires.land()] == [("1-2", "bcd")]
    assert wires.log.next_call(0.0) is None


def test_an_unanswered_append_is_sent_again_as_it_was() -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    first = wires.call()
    wires.log.emit(TextDelta("b"))
    assert wires.call() == first
    assert wires.log.answered([b"duplicate", 1, 0, -1], 0.0) is None
    assert [str(e.id) for e in wires.land()] == ["1-2"]


@given(streams, st.lists(st.integers(0, 4), max_size=30), st.data())
def test_every_event_goes_once_in_order_whatever_the_answers(
    events: list[Event], pauses: list[int], data: st.DataObject
) -> None:
    """Appended, a duplicate, a lost reply, a lost tail: the log that Redis holds in the end is whole."""
    sent = [event for event in events if not isinstance(event, Meta)]
    wires = Wires(memory_bytes=10**6)
    redis: list[bytes] = [META]

    def apply(call: Call) -> list[Any]:
        first = int(call.args[2])
        if first > len(redis):
            return [b"gap", len(redis) - 1, 0, 0]
        skip = len(redis) - first
        batch = [bytes(e) for e in call.args[7:]]  # type: ignore[arg-type]
        if skip >= len(batch):
            return [b"duplicate", len(redis) - 1, 0, -1]
        redis.extend(batch[skip:])
        return [b"appended", len(redis) - 1, 0, 0]

    def round_trip() -> None:
        call = wires.log.next_call(0.0)
        while call is not None:
            fate = data.draw(st.sampled_from(["answered", "answered", "reply lost", "tail lost"]))
            answer = apply(call)
            if fate == "reply lost":
                continue
            if fate == "tail lost":
                del redis[data.draw(st.integers(1, len(redis))) :]
                answer = apply(call)
            call = wires.log.answered(answer, 0.0)

    for place, event in enumerate(sent):
        wires.log.emit(event)
        if place in pauses:
            round_trip()
    while wires.log.next_call(0.0) is not None:
        round_trip()
    assert wires.stops == []
    wires.log.emit(Usage())
    call = wires.log.next_call(0.0)
    while call is not None:  # a tail that was lost after the last append is found by the next
        call = wires.log.answered(apply(call), 0.0)
    got = [event for raw in redis if (event := decode(raw)) is not None]
    check_order(got)
    assert len(_text(got)) == len(_text(sent))


def test_a_gap_is_filled_from_memory_in_flight_included() -> None:
    wires = Wires()
    for piece in "abc":
        wires.log.emit(TextDelta(piece))
        wires.land()
    wires.log.emit(TextDelta("d"))
    wires.call()
    backfill = wires.log.answered([b"gap", 1, 0, 0], 0.0)
    assert backfill is not None
    assert (backfill.args[2], _text(_events(backfill))) == (2, "bcd")
    whole = wires.log.answered([b"gap", -1, 0, 0], 0.0)
    assert whole is not None
    assert (whole.args[2], whole.args[7], _text(_events(whole))) == (0, META, "abcd")
    assert wires.log.answered([b"appended", 4, 0, 0], 0.0) is None
    assert wires.stops == []


def test_memory_is_bounded_and_a_tail_older_than_it_ends_the_attempt() -> None:
    wires = Wires(memory_bytes=1000)
    for _ in range(100):
        wires.log.emit(TextDelta("x" * 50))
        wires.land()
    assert wires.log._memory_size <= 1000
    assert sum(map(len, wires.log._memory)) == wires.log._memory_size
    wires.log.emit(TextDelta("y"))
    wires.call()
    assert wires.log.answered([b"gap", 5, 0, 0], 0.0) is None
    assert wires.stops == ["lost_tail"]
    assert wires.log.closed


@pytest.mark.parametrize("event", [TextDelta("x" * 60), ToolCallDelta(0, "x" * 60)])
async def test_the_buffer_is_bounded_and_has_room_again_when_it_has_gone(event: Event) -> None:
    wires = Wires(buffer_bytes=1000)
    emitted = 0
    wires.log.emit(event)
    wires.call()  # in flight, and Redis is away
    while not wires.log.full:
        wires.log.emit(event)
        emitted += 1
    assert emitted <= 1000 / 60
    waiting = asyncio.create_task(wires.log.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    wires.log.answered([b"appended", 1, 0, 0], 0.0)
    await waiting  # what was in flight has made room
    assert wires.log._pending_chars == emitted * (60 + EVENT_CHARS)
    wires.land()
    assert not wires.log.full


def test_a_great_many_events_go_in_bounded_appends() -> None:
    wires = Wires(buffer_bytes=10**6)
    for n in range(MAX_BATCH + 10):
        wires.log.emit(TextDelta("x", choice=n % 2))
    assert len(wires.land()) == MAX_BATCH
    assert len(wires.land()) == 10


def test_characters_are_counted_for_the_end_and_for_the_estimate() -> None:
    wires = Wires(chars=10)
    for event in (TextDelta("ab"), TextDelta("c", choice=1), ToolCallDelta(0, "{}", "id", "f"), Usage()):
        wires.log.emit(event)
    assert (wires.log.chars, wires.log.output_chars, wires.log.visible) == (12, 6, True)
    assert wires.call().args[3] == 12


def test_who_listened_last_is_known() -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    wires.land(seen=0, now=5.0)
    assert wires.log.seen_at is None
    wires.log.emit(TextDelta("b"))
    wires.land(seen=2, now=6.0)
    assert wires.log.seen_at == 6.0


def test_the_logs_expiry_is_renewed_now_and_then() -> None:
    wires = Wires()
    renewals = []
    for now in (0.0, 10.0, RENEW + 20, RENEW + 30):
        wires.log.emit(TextDelta("a"))
        renewals.append(wires.call(now).args[5])
        wires.log.answered([b"appended", 0, 0, 0], now)
    assert renewals == ["", "", "7000", ""]


@pytest.mark.parametrize(("status", "reason"), [(b"fenced", "fenced"), (b"gone", "gone")])
def test_who_lost_the_job_writes_nothing_more(status: bytes, reason: str) -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    wires.call()
    assert wires.log.answered([status, -1, 0, 0], 0.0) is None
    assert wires.stops == [reason]
    assert wires.log.next_call(0.0) is None
    assert wires.log.answered([b"appended", 1, 0, 0], 0.0) is None


def test_a_cancel_that_an_answer_tells_of_stops_the_attempt() -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    wires.call()
    wires.log.answered([b"appended", 1, 1, 0], 0.0)
    assert wires.stops == ["cancelled"]
    assert not wires.log.closed  # its end is still to be written


async def test_sealing_waits_for_the_answer_and_keeps_the_rest_for_the_end() -> None:
    wires = Wires()
    wires.log.emit(TextDelta("a"))
    wires.call()
    wires.log.emit(TextDelta("b"))
    wires.log.emit(TextDelta("c"))
    sealing = asyncio.create_task(wires.log.seal())
    await asyncio.sleep(0)
    assert not sealing.done()
    wires.log.answered([b"appended", 1, 0, 0], 0.0)
    assert await sealing == [TextDelta("bc")]
    assert wires.log.next_seq == 2
    assert wires.log.next_call(0.0) is None


async def test_closing_frees_whoever_waits() -> None:
    wires = Wires(buffer_bytes=10)
    wires.log.emit(TextDelta("x" * 50))
    wires.call()
    waiting = [asyncio.create_task(wires.log.room()), asyncio.create_task(wires.log.seal())]
    await asyncio.sleep(0)
    wires.log.close()
    await asyncio.gather(*waiting)


def test_an_append_that_redis_refuses_for_good_stops_the_attempt() -> None:
    wires = Wires()
    wires.log.refused(RuntimeError("WRONGTYPE"))
    assert wires.stops == ["refused: WRONGTYPE"]
    assert wires.log.closed


def test_sinks_are_offered_what_has_landed_with_its_ids() -> None:
    wires, offered = Wires(), []
    wires.log.on_appended = offered.extend
    wires.log.emit(TextDelta("a"))
    wires.call()
    assert offered == []
    wires.log.answered([b"duplicate", 1, 0, -1], 0.0)
    assert offered == [TextDelta("a", id=EventId(1, 1), job=JOB)]


def _chars(call: Call) -> int:
    """What an append says of the text's length."""
    return int(call.args[3])


def test_the_length_of_the_text_begins_anew_where_another_model_does_and_goes_on_where_it_goes_on() -> None:
    wires = Wires(chars=100)
    wires.log.emit(TextDelta("one"))
    assert _chars(wires.call()) == 103
    wires.land()
    wires.log.emit(Meta(continued=True))
    wires.log.emit(TextDelta("two"))
    assert _chars(wires.call()) == 106
    wires.land()
    wires.log.emit(Meta(restart=True))
    assert (_chars(wires.call()), wires.log.chars) == (0, 0)
    wires.land()
    wires.log.emit(TextDelta("three"))
    wires.log.emit(TextDelta("other", choice=1))
    assert _chars(wires.call()) == 5
    assert wires.log.output_chars == 3 + 3 + 5 + 5, "void output was paid for, too"
    assert wires.log.visible


def test_an_append_tells_the_length_of_what_it_brings_and_not_of_what_waits() -> None:
    wires = Wires()
    for place in range(MAX_BATCH):
        wires.log.emit(TextDelta("x"))
        wires.log.emit(TextDelta("y", choice=1 + place % 2))
    assert wires.log.chars == MAX_BATCH
    assert _chars(wires.call()) == MAX_BATCH // 2
    wires.land()
    assert _chars(wires.call()) == MAX_BATCH
