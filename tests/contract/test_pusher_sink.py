"""The Pusher sink against a real server of its protocol: order, batches, limits, failures."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import nacl.secret
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pusher.crypto import generate_shared_secret
from pydantic import SecretStr

from deltafan.devserver.pusher import PusherEmulator
from deltafan.errors import ValidationError
from deltafan.events import Done, Event, EventId, Meta, TextDelta, ToolResult
from deltafan.settings import PusherSettings
from deltafan.sinks.base import JobInfo, SinkUnavailable, Undeliverable
from deltafan.sinks.fanout import SinkRunner
from deltafan.sinks.pusher import circuit
from deltafan.sinks.pusher.publisher import TRIES, Publisher
from deltafan.sinks.pusher.sink import PusherSink, pusher_sinks
from deltafan.telemetry.hooks import Signal
from deltafan.wire import encode
from tests.oracle import check_order
from tests.pusher_kit import MASTER_KEY, read, settings_of

JOB = "0-a"


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is over as soon as it is noticed."""
    monkeypatch.setattr(circuit, "AFTER_OUTAGE", 0.0)


@asynccontextmanager
async def publisher_of(emulator: PusherEmulator, **changes: Any) -> AsyncIterator[tuple[Publisher, list[Signal]]]:
    signals: list[Signal] = []
    async with Publisher(settings_of(emulator, **changes), signals.append) as publisher:
        yield publisher, signals


@asynccontextmanager
async def answering(status: int, text: str = "{}", **headers: str) -> AsyncIterator[PusherSettings]:
    """A server that says the same to everything."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield PusherSettings(app_id="1", key="k", secret=SecretStr("s"), host="127.0.0.1", port=server.port, tls=False)


def rate_limiting(seconds: int) -> AbstractAsyncContextManager[PusherSettings]:
    return answering(429, **{"Retry-After": str(seconds)})


def numbered(*events: Event, start: int = 0) -> list[Event]:
    return [replace(event, id=EventId(1, start + n), job=JOB) for n, event in enumerate(events)]


WHOLE = (Meta(model="m"), TextDelta(text="Hel"), TextDelta(text="lo"), Done("stop", text_length=5))


async def test_an_event_is_a_message_of_its_type_with_the_bytes_of_the_log(emulator: PusherEmulator) -> None:
    async with publisher_of(emulator) as (publisher, _), PusherSink("room", publisher, job_id=JOB) as sink:
        events = numbered(*WHOLE)
        await sink.emit(events)
    sent = emulator.on("room")
    assert [message.name for message in sent] == ["meta", "text_delta", "text_delta", "done"]
    assert [message.data.encode() for message in sent] == [encode(JOB, e.id, e) for e in events if e.id]
    assert len({message.request for message in sent}) == 1


async def test_a_channel_gets_its_messages_in_order_however_slow_the_answers(emulator: PusherEmulator) -> None:
    """A second request of the channel would overtake the first, which is held back."""
    emulator.faults.set("delay=0.2*1")
    async with publisher_of(emulator) as (publisher, _):
        first = PusherSink("room", publisher, job_id=JOB)
        second = PusherSink("room", publisher, job_id=JOB)
        await asyncio.gather(first.emit(numbered(*WHOLE[:2])), second.emit(numbered(*WHOLE[2:], start=2)))
    assert [event.id for event in check_order(read(emulator.on("room")))] == [EventId(1, n) for n in range(4)]


async def test_what_is_said_at_once_on_many_channels_shares_requests_of_at_most_ten(emulator: PusherEmulator) -> None:
    async with publisher_of(emulator) as (publisher, _):
        sinks = [PusherSink(f"room-{n}", publisher, job_id=JOB) for n in range(25)]
        await asyncio.gather(*(sink.emit(numbered(Meta(model="m"))) for sink in sinks))
    assert sorted(request.events for request in emulator.requests) == [5, 10, 10]
    assert {message.channel for message in emulator.messages} == {f"room-{n}" for n in range(25)}


async def test_more_than_ten_messages_of_a_channel_stay_in_order(emulator: PusherEmulator) -> None:
    texts = [TextDelta(text=f"{n} ", choice=n) for n in range(34)]
    async with publisher_of(emulator) as (publisher, _):
        await PusherSink("room", publisher, job_id=JOB).emit(numbered(Meta(), *texts))
    assert [request.events for request in emulator.requests] == [10, 10, 10, 5]
    check_order(read(emulator.on("room")))


@pytest.mark.parametrize("fault", ["status=500*2", "status=503*1", "status=429*2", "drop*2"])
async def test_what_may_pass_is_tried_again(emulator: PusherEmulator, fault: str) -> None:
    emulator.faults.set(fault)
    async with publisher_of(emulator) as (publisher, _):
        await PusherSink("room", publisher, job_id=JOB).emit(numbered(*WHOLE))
    assert len(emulator.on("room")) == 4
    tries = [request for request in emulator.requests if request.faults]
    assert len(tries) == int(fault[-1])


async def test_a_request_that_was_served_but_not_answered_comes_again_with_the_same_ids(
    emulator: PusherEmulator,
) -> None:
    emulator.faults.set("lost_reply*1")
    async with publisher_of(emulator) as (publisher, _):
        await PusherSink("room", publisher, job_id=JOB).emit(numbered(*WHOLE))
    assert len(emulator.on("room")) == 8
    assert len(check_order(read(emulator.on("room")))) == 4


@pytest.mark.usefixtures("mended")
async def test_a_server_that_stays_away_is_told_and_the_same_events_go_when_it_is_back(
    emulator: PusherEmulator,
) -> None:
    emulator.faults.set(f"status=500*{TRIES}")
    async with publisher_of(emulator) as (publisher, _):
        sink = PusherSink(["a", "b"], publisher, job_id=JOB)
        with pytest.raises(SinkUnavailable, match="answered 500"):
            await sink.emit(numbered(*WHOLE))
        await sink.emit(numbered(*WHOLE))
    assert len(emulator.on("a")) == len(emulator.on("b")) == 4


@pytest.mark.usefixtures("mended")
async def test_what_a_channel_has_had_does_not_go_again_when_the_rest_failed(emulator: PusherEmulator) -> None:
    """Of eleven messages the first request takes ten; the second fails as often as it is made."""
    events = numbered(Meta(), *(TextDelta(text="x", choice=n) for n in range(10)))
    emulator.faults.set("delay=0.3*1")
    async with publisher_of(emulator) as (publisher, _):
        sink = PusherSink("room", publisher, job_id=JOB)
        sending = asyncio.create_task(sink.emit(events))
        await emulator.until(lambda e: len(e.requests) == 1)
        emulator.faults.set(f"status=500*{TRIES}")
        with pytest.raises(SinkUnavailable):
            await sending
        await sink.emit(events)
    assert [request.events for request in emulator.requests] == [10, *[0] * TRIES, 1]
    check_order(read(emulator.on("room")))


async def test_one_refused_message_costs_no_other(emulator: PusherEmulator) -> None:
    """The batch is refused, then its messages go one by one, and the first of them is the one at fault."""
    emulator.faults.set("status=400*2")
    async with publisher_of(emulator) as (publisher, signals):
        bad, good = (PusherSink(name, publisher, job_id=JOB) for name in ("bad", "good"))
        outcomes = await asyncio.gather(bad.emit(numbered(*WHOLE)), good.emit(numbered(*WHOLE)), return_exceptions=True)
    assert isinstance(outcomes[0], Undeliverable)
    assert not outcomes[0].final
    assert outcomes[1] is None
    assert [event.id for event in read(emulator.on("bad"))] == [EventId(1, n) for n in (1, 2, 3)]
    assert len(emulator.on("good")) == 4
    assert [signal.name for signal in signals] == ["pusher.refused"]


async def test_403_opens_a_circuit_through_which_no_request_goes(emulator: PusherEmulator) -> None:
    emulator.faults.set("status=403")
    async with publisher_of(emulator) as (publisher, signals):
        sink = PusherSink("room", publisher, job_id=JOB)
        for _ in range(3):
            with pytest.raises(SinkUnavailable, match="answered 403") as refused:
                await sink.emit(numbered(*WHOLE))
            assert 0 < refused.value.retry_after <= 30
    assert len(emulator.requests) == 1
    assert [signal.name for signal in signals] == ["pusher.circuit_opened"]


async def test_a_server_that_is_away_is_asked_no_more_for_a_while(emulator: PusherEmulator) -> None:
    emulator.faults.set("drop")
    async with publisher_of(emulator) as (publisher, signals):
        sinks = [PusherSink(f"room-{n}", publisher, job_id=JOB) for n in range(5)]
        with pytest.raises(SinkUnavailable, match="cannot be reached"):
            await sinks[0].emit(numbered(*WHOLE))
        for sink in sinks:
            with pytest.raises(SinkUnavailable) as refused:
                await sink.emit(numbered(*WHOLE))
            assert 0 < refused.value.retry_after <= 1
    assert len(emulator.requests) == TRIES
    assert [signal.name for signal in signals] == ["pusher.circuit_opened"]


async def test_who_asks_for_a_long_pause_gets_it_without_a_request_being_held(emulator: PusherEmulator) -> None:
    """429 with Retry-After: the messages go back to their sink, and nobody else waits behind them."""
    async with rate_limiting(60) as settings, Publisher(settings) as publisher:
        sink = PusherSink("room", publisher, job_id=JOB)
        async with asyncio.timeout(10):
            with pytest.raises(SinkUnavailable, match="answered 429") as refused:
                await sink.emit(numbered(*WHOLE))
        assert refused.value.retry_after == 60


@pytest.mark.parametrize("status", [404, 408])
async def test_what_a_proxy_says_while_servers_change_is_no_last_word(emulator: PusherEmulator, status: int) -> None:
    emulator.faults.set(f"status={status}*{TRIES}")
    async with publisher_of(emulator) as (publisher, _):
        with pytest.raises(SinkUnavailable, match=f"answered {status}"):
            await PusherSink("room", publisher, job_id=JOB).emit(numbered(*WHOLE))


async def test_a_page_of_somebody_else_is_no_acceptance() -> None:
    async with answering(200, "<html>Welcome</html>") as settings, Publisher(settings) as publisher:
        with pytest.raises(SinkUnavailable, match="answered 200: <html>Welcome"):
            await PusherSink("room", publisher, job_id=JOB).emit(numbered(*WHOLE))


async def test_one_sink_serves_one_completion_after_another(emulator: PusherEmulator) -> None:
    async with publisher_of(emulator) as (publisher, _), PusherSink("room", publisher) as sink:
        for job in ("0-a", "0-b"):
            await sink.emit([replace(event, job=job) for event in numbered(*WHOLE)])
        for _ in range(2):
            await sink.emit([replace(event, id=None, job=None) for event in numbered(*WHOLE[:2])])
    sent = [(json.loads(message.data)["job"], json.loads(message.data)["id"]) for message in emulator.on("room")]
    assert sent[:8] == [(job, f"1-{n}") for job in ("0-a", "0-b") for n in range(4)]
    assert sent[8:] == [(sink.job_id, f"1-{n}") for n in range(4)]


async def test_wrong_credentials_are_not_tried_again(emulator: PusherEmulator) -> None:
    async with publisher_of(emulator, secret="another-secret") as (publisher, _):
        sink = PusherSink("room", publisher, job_id=JOB)
        with pytest.raises(
            Undeliverable, match=r"^wrong credentials \(check PUSHER_APP_ID, .*: Invalid signature$"
        ) as refused:
            await sink.emit(numbered(*WHOLE))
    assert refused.value.final
    assert len(emulator.requests) == 1
    assert "another-secret" not in str(refused.value)


@pytest.mark.parametrize("seconds", [-1200, 1200])
async def test_a_clock_that_is_wrong_is_found_out_and_allowed_for(emulator: PusherEmulator, seconds: int) -> None:
    emulator.faults.set(f"skew={seconds}")
    async with publisher_of(emulator) as (publisher, signals):
        sink = PusherSink("room", publisher, job_id=JOB)
        await sink.emit(numbered(*WHOLE[:2]))
        await sink.emit(numbered(*WHOLE[2:], start=2))
    assert len(emulator.on("room")) == 4
    assert [request.status for request in emulator.requests] == [401, 200, 200]
    (signal,) = signals
    assert signal.name == "pusher.clock_skew"
    assert abs(signal.fields["seconds"] - seconds) < 60


async def test_an_encrypted_channel_is_sealed_with_its_own_secret(emulator: PusherEmulator) -> None:
    channel = "private-encrypted-room"
    text = "s3cret " * 4000
    async with publisher_of(emulator) as (publisher, _):
        await PusherSink(channel, publisher, job_id=JOB).emit(numbered(Meta(), TextDelta(text=text)))
    sent = emulator.on(channel)
    assert all("s3cret" not in message.data and len(message.data) <= 10_240 for message in sent)
    box = nacl.secret.SecretBox(generate_shared_secret(channel.encode(), base64.b64decode(MASTER_KEY)))
    opened = []
    for message in sent:
        sealed = json.loads(message.data)
        plain = box.decrypt(base64.b64decode(sealed["ciphertext"]), base64.b64decode(sealed["nonce"]))
        opened.append(replace(message, data=plain.decode()))
    assert "".join(e.text for e in read(opened) if isinstance(e, TextDelta)) == text


async def test_an_encrypted_channel_without_a_key_is_refused_and_costs_the_others_nothing(
    emulator: PusherEmulator,
) -> None:
    async with publisher_of(emulator, encryption_master_key=None) as (publisher, _):
        sink = PusherSink(["private-encrypted-a", "b"], publisher, job_id=JOB)
        with pytest.raises(Undeliverable, match="PUSHER_ENCRYPTION_MASTER_KEY is not set") as refused:
            await sink.emit(numbered(*WHOLE[:2]))
        assert not refused.value.final
        await sink.emit(numbered(*WHOLE[2:], start=2))
        with pytest.raises(Undeliverable) as refused:
            await PusherSink("private-encrypted-a", publisher, job_id=JOB).emit(numbered(*WHOLE))
        assert refused.value.final, "there is nothing that could be delivered"
    assert len(emulator.on("b")) == 4
    assert emulator.on("private-encrypted-a") == []


async def test_large_events_arrive_whole(emulator: PusherEmulator) -> None:
    events = numbered(
        Meta(model="m", metadata={"note": "🌊" * 5000}),
        TextDelta(text="é\n" * 20_000),
        ToolResult(call_id="c", name="f", result="x" * 50_000),
        Done("stop", text_length=40_000),
    )
    async with publisher_of(emulator) as (publisher, _):
        await PusherSink("room", publisher, job_id=JOB).emit(events)
    assert all(len(message.data.encode()) <= 10_240 for message in emulator.messages)
    got = read(emulator.on("room"))
    assert "".join(event.text for event in got if isinstance(event, TextDelta)) == "é\n" * 20_000
    assert [event for event in got if not isinstance(event, TextDelta)] == [events[0], *events[2:]]


async def test_what_arrives_within_the_interval_is_merged_and_the_first_delta_goes_at_once(
    emulator: PusherEmulator,
) -> None:
    log = numbered(Meta(), *(TextDelta(text=f"{n},") for n in range(200)), Done("stop"))
    job = JobInfo(JOB, "default", None, {}, ("room",))

    async with publisher_of(emulator, interval=0.2) as (publisher, signals):

        async def catch_up(after: EventId | None) -> list[Event]:
            return [event for event in appended if after is None or (event.id and event.id > after)]

        appended = log[:1]

        runner = SinkRunner("pusher", pusher_sinks(publisher), job, catch_up, signals.append)
        await emulator.until(lambda e: len(e.on("room")) == 1)
        for event in log[1:]:
            appended.append(event)
            runner.offer([event])
            await asyncio.sleep(0)
        await runner.settle(log[-1].id, 10)
        await runner.stop()
    sent = emulator.on("room")
    assert len(sent) < 50
    events = check_order(read(sent))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(
        f"{n}," for n in range(200)
    )


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 165, "private-"])
async def test_a_name_that_the_service_would_refuse_is_refused_at_once(emulator: PusherEmulator, name: str) -> None:
    async with publisher_of(emulator) as (publisher, _):
        with pytest.raises(ValidationError, match="channel: "):
            PusherSink(name, publisher)


async def test_a_closed_publisher_leaves_no_connection(emulator: PusherEmulator) -> None:
    async with publisher_of(emulator) as (publisher, _):
        emulator.faults.set("delay=2")
        sending = asyncio.create_task(PusherSink("room", publisher, job_id=JOB).emit(numbered(*WHOLE)))
        await emulator.until(lambda e: len(e.requests) == 1)
    with pytest.raises(SinkUnavailable):
        await sending
