"""What every sink can rely on, and what a bad one cannot do to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import redis.asyncio

from deltafan.coalesce import coalesce
from deltafan.events import Done, Event, EventId, Meta, TextDelta, Usage
from deltafan.sinks import fanout
from deltafan.sinks.base import JobInfo, Sink, SinkUnavailable, Undeliverable
from deltafan.sinks.fanout import BUFFER, FROM_THE_START, Fanout, SinkRunner, Start, unknown_sinks
from deltafan.sinks.memory import MemorySink
from deltafan.sinks.redis_channel import RedisChannelSink
from deltafan.telemetry.hooks import Signal
from deltafan.wire import decode
from tests.oracle import check_order, check_whole

INFO = JobInfo("0-a", "default", None, {})
PAGE = 1000


class Log:
    """A job's log and what its engine does: each event is in the log before a sink is offered it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads: list[EventId | None] = []
        self.away = 0
        self._fanout = Fanout(())

    async def read(self, after: EventId | None) -> Sequence[Event]:
        self.reads.append(after)
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise ConnectionError("Redis is away")
        return [e for e in self.events if after is None or (e.id is not None and e.id > after)][:PAGE]

    @property
    def last(self) -> EventId:
        return EventId(1, len(self.events) - 1)

    def append(self, *events: Event) -> None:
        first = len(self.events)
        made = [_numbered(event, first + n) for n, event in enumerate(events)]
        self.events += made
        self._fanout.offer(made)

    def feeds(self, runners: Fanout) -> None:
        self._fanout = runners


def _numbered(event: Event, seq: int) -> Event:
    return replace(event, id=EventId(1, seq), job="0-a")


class Gate(MemorySink):
    """A slow sink: a batch ends when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self.batches: list[int] = []

    async def emit(self, batch: Sequence[Event]) -> None:
        self.entered.set()
        await self.open.wait()
        self.batches.append(len(batch))
        await super().emit(batch)


class Flaky(MemorySink):
    """Fails the first few times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def emit(self, batch: Sequence[Event]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("try again")
        await super().emit(batch)


@asynccontextmanager
async def serving(
    log: Log, *sinks: Sink, start: Start = FROM_THE_START
) -> AsyncIterator[tuple[Fanout, list[SinkRunner]]]:
    signals: list[Signal] = []

    def factory(sink: Sink) -> Callable[[JobInfo], object]:
        async def make(job: JobInfo) -> Sink:
            assert job == INFO
            return sink

        return make

    runners = [
        SinkRunner(f"s{n}", factory(sink), INFO, log.read, signals.append, start)  # type: ignore[arg-type]
        for n, sink in enumerate(sinks)
    ]
    made = Fanout(runners)
    log.feeds(made)
    try:
        yield made, runners
    finally:
        await made.aclose()


async def _complete(*runners: SinkRunner) -> None:
    async with asyncio.timeout(5):
        for runner in runners:
            await runner.complete.wait()


async def _delivered(runner: SinkRunner, event_id: EventId) -> None:
    async with asyncio.timeout(5):
        while runner.delivered is None or runner.delivered < event_id:
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_RETRY_MIN", 0.001)
    monkeypatch.setattr(fanout, "_RETRY_MAX", 0.01)


async def test_a_sink_gets_everything_in_order_once_and_is_closed() -> None:
    log, sink = Log(), MemorySink()
    log.append(Meta(), TextDelta("a"))
    async with serving(log, sink) as (made, runners):
        for n in range(200):
            log.append(TextDelta(str(n)))
            if n % 7 == 0:
                await asyncio.sleep(0)
        log.append(Done(text_length=len("a" + "".join(map(str, range(200))))))
        standing = await made.settle(log.last, 5)
    check_whole(sink.events, "a" + "".join(map(str, range(200))))
    assert sink.closed
    assert standing == {"s0": {"state": "delivered", "last_id": "1-202"}}
    assert runners[0].delivered == EventId(1, 202)


async def test_what_arrives_while_a_batch_is_under_way_is_merged() -> None:
    log, gate = Log(), Gate()
    log.append(Meta())
    async with serving(log, gate) as (_, runners):
        await gate.entered.wait()
        for _ in range(100):
            log.append(TextDelta("x"))
        log.append(Done(text_length=100))
        gate.open.set()
        await _complete(*runners)
    # The first read may bring some as they are in the log; nothing comes twice in any case.
    check_whole(gate.events, "x" * 100)
    assert len(gate.batches) <= 3


async def test_merging_keeps_ids_so_that_a_receiver_can_go_on_from_any() -> None:
    log, sink = Log(), MemorySink()
    log.append(Meta(), TextDelta("a"), TextDelta("b"), Done(text_length=2))
    async with serving(log, sink, start=Start(after=EventId(1, 1))) as (_, runners):
        await _complete(*runners)
    assert check_order(coalesce(sink.events), EventId(1, 1)) == log.events[2:]


async def test_a_slow_sink_delays_no_other() -> None:
    log, slow, fast = Log(), Gate(), MemorySink()
    log.append(Meta())
    async with serving(log, slow, fast) as (_, runners):
        await slow.entered.wait()
        log.append(*(TextDelta("x") for _ in range(50)), Done(text_length=50))
        await _complete(runners[1])
        check_whole(fast.events, "x" * 50)
        assert slow.events == []
        assert runners[0].status() == {"state": "delivering", "last_id": None}
        slow.open.set()
        await _complete(runners[0])
    check_whole(slow.events, "x" * 50)


async def test_a_sink_that_falls_behind_its_buffer_catches_up_from_the_log() -> None:
    log, slow = Log(), Gate()
    log.append(Meta())
    total = 2 * BUFFER + 10
    async with serving(log, slow) as (_, runners):
        await slow.entered.wait()
        for _ in range(total):
            log.append(TextDelta("x"))
        assert len(runners[0]._buffer) <= BUFFER
        log.append(Done(text_length=total))
        reads = len(log.reads)
        slow.open.set()
        await _complete(runners[0])
    check_whole(slow.events, "x" * total)
    assert len(log.reads) > reads


async def test_a_buffer_that_overflows_while_the_log_is_read_is_not_forgotten() -> None:
    """The read came back empty, and by then more had arrived than the buffer holds, the end among it."""
    sink, log = MemorySink(), Log()
    log.append(Meta())
    gate, reading = asyncio.Event(), asyncio.Event()
    read = log.read

    async def slow_read(after: EventId | None) -> Sequence[Event]:
        page = await read(after)
        if not page:
            reading.set()
            await gate.wait()
        return page

    log.read = slow_read  # type: ignore[method-assign]
    async with serving(log, sink) as (_, runners):
        await reading.wait()
        log.append(*(TextDelta("x") for _ in range(BUFFER)), Done(text_length=BUFFER))
        gate.set()
        await _complete(*runners)
    check_whole(sink.events, "x" * BUFFER)


async def test_a_failing_sink_is_tried_again_and_misses_nothing() -> None:
    log, flaky, other = Log(), Flaky(4), MemorySink()
    log.append(Meta(), TextDelta("a"))
    async with serving(log, flaky, other) as (made, runners):
        log.append(TextDelta("b"), Done(text_length=2))
        standing = await made.settle(log.last, 5)
    check_whole(flaky.events, "ab")
    check_whole(other.events, "ab")
    assert standing["s0"] == {"state": "delivered", "last_id": "1-3"}
    assert runners[0].error is None


async def test_a_batch_that_may_have_arrived_comes_again_as_it_was() -> None:
    """Merged with what came since, it would overlap with what a receiver has, which cannot cut an event in two."""

    class Doubtful(MemorySink):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[list[Event]] = []
            self.failing = asyncio.Event()
            self.more = asyncio.Event()

        async def emit(self, batch: Sequence[Event]) -> None:
            self.batches.append(list(batch))
            if any(isinstance(event, TextDelta) for event in batch) and not self.more.is_set():
                self.failing.set()
                await self.more.wait()
                raise ConnectionError("no answer")
            await super().emit(batch)

    log, sink = Log(), Doubtful()
    log.append(Meta())
    async with serving(log, sink) as (_, runners):
        log.append(TextDelta("a"), TextDelta("b"))
        await sink.failing.wait()
        log.append(TextDelta("c"), Done(text_length=3))
        sink.more.set()
        await _complete(*runners)
    doubtful = next(place for place, batch in enumerate(sink.batches) if any(e.type == "text_delta" for e in batch))
    assert sink.batches[doubtful] == sink.batches[doubtful + 1]
    check_whole(sink.events, "abc")


async def test_what_an_earlier_worker_may_have_sent_is_not_merged() -> None:
    log, sink = Log(), MemorySink()
    log.append(Meta(), *(TextDelta(text) for text in "abcdef"), Done(text_length=6))
    async with serving(log, sink, start=Start(maybe_sent=EventId(1, 3))) as (_, runners):
        await _complete(*runners)
    assert [event.id for event in sink.events] == [EventId(1, n) for n in (0, 1, 2, 3, 6, 7)]
    check_whole(sink.events, "abcdef")


async def test_what_a_sink_refuses_for_good_is_left_out_and_told() -> None:
    class Picky(MemorySink):
        async def emit(self, batch: Sequence[Event]) -> None:
            if any(event.type == "usage" for event in batch):
                raise Undeliverable("too large")
            await super().emit(batch)

    log, sink = Log(), Picky()
    log.append(Meta(), TextDelta("a"), Usage(1, 1, 2))
    async with serving(log, sink) as (made, runners):
        await _delivered(runners[0], EventId(1, 2))
        log.append(Done(text_length=1))
        standing = await made.settle(log.last, 5)
    assert sink.events[-1] == log.events[-1]
    assert standing == {
        "s0": {"state": "incomplete", "last_id": "1-3", "refused": 1, "error": "Undeliverable: too large"}
    }


async def test_a_sink_that_would_refuse_everything_is_given_up() -> None:
    class Locked(MemorySink):
        tries = 0

        async def emit(self, batch: Sequence[Event]) -> None:
            self.tries += 1
            raise Undeliverable("wrong key", final=True)

    log, sink = Log(), Locked()
    log.append(Meta(), Done())
    async with serving(log, sink) as (made, _):
        standing = await made.settle(log.last, 60)
    assert (sink.tries, sink.closed) == (1, True)
    assert standing["s0"] == {"state": "failed", "last_id": None, "refused": 1, "error": "Undeliverable: wrong key"}


async def test_a_job_that_has_ended_does_not_wait_for_a_try_beyond_its_budget() -> None:
    class Closed(MemorySink):
        async def emit(self, batch: Sequence[Event]) -> None:
            raise SinkUnavailable("over quota", retry_after=3600)

    log, sink = Log(), Closed()
    log.append(Meta(), Done())
    async with serving(log, sink) as (made, _), asyncio.timeout(20):
        standing = await made.settle(log.last, 600)
    assert standing["s0"] == {"state": "behind", "last_id": None, "error": "SinkUnavailable: over quota"}


async def test_a_log_that_cannot_be_read_for_a_while_is_waited_for() -> None:
    log, sink = Log(), MemorySink()
    log.away = 3
    log.append(Meta(), Done())
    async with serving(log, sink) as (_, runners):
        await _complete(*runners)
    check_whole(sink.events, "")


async def test_a_sink_that_stays_behind_is_stopped_closed_and_named() -> None:
    log, dead = Log(), Flaky(10**9)
    stuck = Gate()
    log.append(Meta(), Done())
    async with serving(log, dead, stuck) as (made, _):
        await stuck.entered.wait()
        standing = await made.settle(log.last, 0.05)
    assert standing["s0"] == {"state": "behind", "last_id": None, "error": "ConnectionError: try again"}
    assert standing["s1"] == {"state": "behind", "last_id": None, "error": "it did not take everything in time"}
    assert stuck.closed


async def test_a_factory_that_fails_is_tried_again() -> None:
    log, sink, tries = Log(), MemorySink(), iter(range(3))
    log.append(Meta(), Done())

    async def make(job: JobInfo) -> Sink:
        if next(tries) < 2:
            raise OSError("no address")
        return sink

    signals: list[Signal] = []
    runner = SinkRunner("s", make, INFO, log.read, signals.append)
    try:
        await _complete(runner)
    finally:
        await runner.stop()
    check_whole(sink.events, "")
    assert [(s.name, s.fields.get("error")) for s in signals] == [
        ("sink.failed", "OSError: no address"),
        ("sink.recovered", None),
    ], "told once an outage"


async def test_a_sink_with_its_done_closes_in_peace_and_may_fail_at_it() -> None:
    class Closing(MemorySink):
        async def aclose(self) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            await super().aclose()
            raise RuntimeError("already closed")

    log, sink = Log(), Closing()
    log.append(Meta(), Done())
    async with serving(log, sink) as (made, _):
        standing = await made.settle(log.last, 5)
    assert sink.closed
    assert standing["s0"]["state"] == "delivered"


async def test_settling_nothing_takes_no_time() -> None:
    made = Fanout(())
    assert not made
    assert await made.settle(EventId(1, 0), 60) == {}


def test_unknown_sinks_are_named_in_order() -> None:
    assert unknown_sinks(["b", "a", "c"], {"a": None}) == ["b", "c"]  # type: ignore[dict-item]


async def test_the_redis_channel_sink_publishes_what_the_wire_says(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("mine")
        sink = RedisChannelSink(client, "mine")
        await sink.emit([Meta(), TextDelta("a")])
        await sink.emit([TextDelta("b"), Done(text_length=2)])
        await sink.aclose()
        got: list[Event] = []
        async with asyncio.timeout(5):
            while len(got) < 4:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
                event = decode(message["data"]) if message else None
                if event is not None:
                    got.append(event)
    check_whole(got, "ab")
