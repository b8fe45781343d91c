"""Jobs on Pusher channels through a real worker: what a page there sees, and what a dead Pusher costs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from deltafan import OpenAIClient, PusherSink
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.channels import job_channel
from deltafan.devserver.provider import Provider, Script, parse_fault, running
from deltafan.devserver.provider.source import Text
from deltafan.devserver.pusher import PusherEmulator
from deltafan.errors import CompletionError, ConfigurationError
from deltafan.events import Error, Event, Meta, TextDelta
from deltafan.sinks.base import SinkUnavailable
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.pusher.sink import pusher_sinks
from tests.conftest import StartWorker
from tests.oracle import check_whole
from tests.pusher_kit import read, settings_of

TEXT = "One, two, three; the quick brown fox jumps over the lazy dog, again and again. " * 8
SLOW = Script(source=Text(TEXT), chunk_size=4, rate=200)


@asynccontextmanager
async def sink_of(emulator: PusherEmulator, **changes: Any) -> AsyncIterator[dict[str, Any]]:
    async with Publisher(settings_of(emulator, **changes)) as publisher:
        yield {"sinks": {"pusher": pusher_sinks(publisher)}}


async def ended(job: AsyncJob) -> list[Event]:
    async with asyncio.timeout(30):
        return [event async for event in job.events()]


async def acknowledged(queue: AsyncQueue, job: AsyncJob) -> dict[str, Any]:
    """The job's sinks, once they are settled."""
    async with asyncio.timeout(30):
        while True:
            sinks = (await job.status()).sinks
            if sinks and all(standing["state"] != "delivering" for standing in sinks.values()):
                return sinks
            await asyncio.sleep(0.02)


def has_done(channel: str) -> Any:
    return lambda emulator: any(message.name == "done" for message in emulator.on(channel))


async def test_a_job_is_followed_on_its_own_private_channel(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    async with running(SLOW) as provider, sink_of(emulator) as services:
        await start_worker(provider, services)
        job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
        log = await ended(job)
        await emulator.until(has_done(job_channel(job.id)))
        events = read(emulator.on(job_channel(job.id)))
        check_whole(events, TEXT)
        assert [event for event in events if not isinstance(event, TextDelta)] == [
            event for event in log if not isinstance(event, TextDelta)
        ]
        assert (await acknowledged(queue, job))["pusher"] == {"state": "delivered", "last_id": str(events[-1].id)}
        assert (await job.status()).pusher_channels == (job_channel(job.id),)


async def test_every_channel_that_a_job_names_gets_everything(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    names = ["news", "private-a@b", "presence-room"]
    async with running(Script(source=Text(TEXT))) as provider, sink_of(emulator) as services:
        await start_worker(provider, services)
        job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"], pusher_channels=names)
        await ended(job)
        for name in names:
            await emulator.until(has_done(name))
            check_whole(read(emulator.on(name)), TEXT)


async def test_a_jobs_channel_serves_on_pusher_too(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    async with running(Script(source=Text(TEXT))) as provider, sink_of(emulator) as services:
        await start_worker(provider, services)
        await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"], channel="chat-7")
        await emulator.until(has_done("chat-7"))
        check_whole(read(emulator.on("chat-7")), TEXT)


async def test_a_pusher_that_fails_for_a_while_gets_everything_in_order(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    async with running(SLOW) as provider, sink_of(emulator) as services:
        await start_worker(provider, services)
        job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
        channel = job_channel(job.id)
        await emulator.until(lambda e: len(e.on(channel)) > 3)
        emulator.faults.set("lost_reply*1", "status=503*6")
        await ended(job)
        await emulator.until(has_done(channel))
        check_whole(read(emulator.on(channel)), TEXT)
        assert (await acknowledged(queue, job))["pusher"]["state"] == "delivered"


async def test_a_dead_pusher_costs_the_job_nothing_and_its_status_says_so(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    emulator.faults.set("drop")
    async with running(Script(source=Text(TEXT))) as provider, sink_of(emulator) as services:
        await start_worker(provider, services, sink_budget=0.3)
        job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
        check_whole(await ended(job), TEXT)
        standing = (await acknowledged(queue, job))["pusher"]
        assert (standing["state"], standing["last_id"]) == ("behind", None)
        status = await job.status()
        assert status.state == "done"
        other = await queue.enqueue(model="scripted", prompt="x")
        check_whole(await ended(other), TEXT)


async def test_jobs_that_wait_for_a_dead_pusher_take_nobodys_place(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    emulator.faults.set("delay=30")
    async with running(Script(source=Text(TEXT))) as provider, sink_of(emulator) as services:
        await start_worker(provider, services, concurrency=1, sink_budget=60)
        waiting = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
        await ended(waiting)
        plain = await queue.enqueue(model="scripted", prompt="x")
        check_whole(await ended(plain), TEXT)
        assert (await waiting.status()).sinks["pusher"]["state"] == "delivering", "it still waits"


async def test_over_quota_the_job_ends_at_once_and_names_the_reason(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    """The circuit is open for longer than the sink's budget: there is nothing to wait for."""
    emulator.faults.set("status=403")
    async with running(Script(source=Text(TEXT))) as provider, sink_of(emulator) as services:
        await start_worker(provider, services, sink_budget=20)
        for _ in range(2):
            job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
            check_whole(await ended(job), TEXT)
            standing = (await acknowledged(queue, job))["pusher"]
            assert standing["state"] == "behind"
            assert "answered 403" in standing["error"]
    assert len(emulator.requests) == 1


async def test_a_page_sees_an_attempt_that_failed_and_the_one_that_follows(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator
) -> None:
    script = Script(source=Text(TEXT), chunk_size=4, rate=400, faults=(parse_fault("cut=20*1"),))
    async with running(script) as provider, sink_of(emulator) as services:
        await start_worker(provider, services)
        job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
        await emulator.until(has_done(job_channel(job.id)))
        events = read(emulator.on(job_channel(job.id)))
        check_whole(events, TEXT)
        assert [e.code for e in events if isinstance(e, Error)] == ["connection"]
        assert [e.attempt for e in events if isinstance(e, Meta)] == [1, 2]


@pytest.mark.parametrize("on_takeover", ["restart", "continue"])
async def test_a_page_sees_the_whole_text_when_the_worker_vanishes(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator, on_takeover: str
) -> None:
    async with running(Script(source=Text(TEXT), chunk_size=4, rate=60)) as provider, AsyncExitStack() as stack:
        first = await start_worker(provider, await stack.enter_async_context(sink_of(emulator)))
        job = await queue.enqueue(model="vllm/scripted", prompt="x", sinks=["pusher"], on_takeover=on_takeover)
        channel = job_channel(job.id)
        await emulator.until(lambda e: len(e.on(channel)) > 5)
        await first.vanish()
        await start_worker(provider, await stack.enter_async_context(sink_of(emulator)))
        await emulator.until(has_done(channel), timeout=40)
        events = read(emulator.on(channel))
        assert [(e.restart, e.continued) for e in events if isinstance(e, Meta)][1:] == [
            (on_takeover == "restart", on_takeover == "continue")
        ]
        check_whole(events, TEXT)


async def test_a_worker_without_pusher_says_what_to_set(queue: AsyncQueue, start_worker: StartWorker) -> None:
    await start_worker()
    job = await queue.enqueue(model="scripted", prompt="x", sinks=["pusher"])
    await ended(job)
    assert "set PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET" in str((await job.status()).error)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, provider: Provider, emulator: PusherEmulator) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "PUSHER_"))]:
        monkeypatch.delenv(name)
    for name, value in emulator.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)


@pytest.mark.usefixtures("environment")
async def test_a_program_streams_to_pusher_without_a_queue(emulator: PusherEmulator) -> None:
    async with OpenAIClient("gpt-5-mini") as client, PusherSink(channel="room") as sink:
        transcript = await client.stream_to_sink(sink, input="Hello")
    events = read(emulator.on("room"))
    assert check_whole(events, transcript.text).usage is not None
    assert isinstance(events[0], Meta)
    assert (events[0].model, events[0].provider) == ("gpt-5-mini", "openai")
    assert len({event.job for event in events}) == 1


@pytest.mark.usefixtures("environment")
async def test_a_page_is_told_when_the_completion_fails(
    emulator: PusherEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    async with OpenAIClient("gpt-5-mini") as client, PusherSink(channel="room") as sink:
        with pytest.raises(CompletionError):
            await client.stream_to_sink(sink, "Hello")
    assert [event.type for event in read(emulator.on("room"))] == ["meta", "error", "done"]


@pytest.mark.usefixtures("environment")
async def test_a_program_is_told_when_pusher_did_not_get_everything(emulator: PusherEmulator) -> None:
    emulator.faults.set("status=403")
    async with OpenAIClient("gpt-5-mini") as client, PusherSink(channel="room") as sink:
        with pytest.raises(SinkUnavailable, match="answered 403") as refused:
            await client.stream_to_sink(sink, "Hello")
    assert refused.value.transcript is not None
    assert refused.value.transcript.text, "it has been paid"


@pytest.mark.usefixtures("environment")
async def test_a_sink_without_credentials_says_which_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PUSHER_APP_ID", "PUSHER_KEY", "PUSHER_SECRET"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError, match="set PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET"):
        PusherSink(channel="room")


@pytest.mark.usefixtures("environment")
async def test_an_encrypted_channel_without_a_key_is_refused_before_anything_is_paid() -> None:
    with pytest.raises(ConfigurationError, match="set PUSHER_ENCRYPTION_MASTER_KEY"):
        PusherSink(channel=["room", "private-encrypted-room"])
