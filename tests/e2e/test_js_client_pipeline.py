"""deltafan.js at the end of the whole Pusher way: scripted model, real worker, real sink, emulator, relay, Node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.channels import job_channel
from deltafan.devserver.provider import Script, Text
from deltafan.devserver.provider import running as running_provider
from deltafan.devserver.pusher import PusherEmulator
from deltafan.settings import PusherSettings
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.pusher.sink import pusher_sinks
from tests.conftest import StartWorker
from tests.e2e.js_client_kit import following
from tests.e2e.relay_kit import SPEC, Relay, running_relay
from tests.js_kit import needs_node

pytestmark = needs_node

TEXT = "Ελλάδα, 日本語 and a flag 🏳️‍🌈, as the model says it. " * 8


@pytest.fixture
def settings(emulator: PusherEmulator) -> PusherSettings:
    return PusherSettings(
        app_id=emulator.app_id,
        key=emulator.key,
        secret=emulator.secret,
        host=emulator.host,
        port=emulator.port,
        tls=False,
    )


@asynccontextmanager
async def way(
    queue: AsyncQueue, start_worker: StartWorker, settings: PusherSettings, text: str, **script: Any
) -> AsyncIterator[tuple[Relay, Any]]:
    """The whole way, with one worker. Gives the relay, and what starts another worker."""
    async with (
        running_provider(Script(source=Text(text), **script)) as provider,
        Publisher(settings) as publisher,
        running_relay(queue, pusher=settings) as relay,
    ):
        services = {"sinks": {"pusher": pusher_sinks(publisher)}}
        yield relay, lambda: start_worker(provider, services)


async def test_a_slow_answer_comes_whole_though_pusher_refuses_repeats_and_cuts(
    queue: AsyncQueue, start_worker: StartWorker, emulator: PusherEmulator, settings: PusherSettings
) -> None:
    text, cuts = TEXT * 3, 0

    async def cut(channel: str) -> None:
        """Three times, each when the page has come back and some messages have passed."""
        nonlocal cuts
        for _ in range(3):
            await emulator.until(lambda _: emulator.subscription_count(channel) > 0, timeout=60)
            passed = len(emulator.on(channel))
            await emulator.until(lambda _, enough=passed + 5: len(emulator.on(channel)) > enough, timeout=60)
            emulator.disconnect_all()
            cuts += 1
            await emulator.until(lambda _: emulator.subscription_count(channel) == 0)

    async with way(queue, start_worker, settings, text, chunk_size=4, rate=60) as (relay, start):
        job = await queue.enqueue(SPEC, sinks=["pusher"])
        async with following(job.id, relay=relay.url, pusher=True, silence=2_000) as follower:
            await follower.until_joined()
            await start()
            await follower.until("event", lambda event: event["type"] == "text_delta")
            emulator.faults.set("lost_reply*2", "status=500*2")
            cutting = asyncio.create_task(cut(job_channel(job.id)))
            await follower.whole(text)
            cutting.cancel()  # a slow machine: the answer was quicker than the cuts
            await asyncio.gather(cutting, return_exceptions=True)
    assert cuts > 0


async def test_a_worker_that_vanishes_mid_stream_is_succeeded_by_another(
    queue: AsyncQueue, start_worker: StartWorker, settings: PusherSettings
) -> None:
    async with way(queue, start_worker, settings, TEXT, chunk_size=4, rate=60) as (relay, start):
        job = await queue.enqueue(SPEC, sinks=["pusher"])
        async with following(job.id, relay=relay.url, pusher=True, silence=2_000) as follower:
            await follower.until_joined()
            doomed = await start()
            await follower.until("event", lambda event: event["type"] == "text_delta")
            await doomed.vanish()
            await start()
            await follower.until("event", lambda event: event["type"] == "meta" and event["attempt"] == 2)
            await follower.whole(TEXT)


@pytest.mark.parametrize("alone", [False, True], ids=["with a relay", "alone"])
async def test_deltas_longer_than_a_pusher_event_come_whole(
    queue: AsyncQueue, start_worker: StartWorker, settings: PusherSettings, alone: bool
) -> None:
    text = "".join(f"{n} 日本語 🏳️‍🌈 " for n in range(4_000))
    async with way(queue, start_worker, settings, text, chunk_size=30_000) as (relay, start):
        job = await queue.enqueue(SPEC, sinks=["pusher"], pusher_channels=["open"])
        where = {"key": settings.key, "host": settings.host, "port": settings.port, "tls": False, "channel": "open"}
        url, pusher = (None, where) if alone else (relay.url, True)
        async with following(job.id, relay=url, pusher=pusher, silence=600_000) as follower:
            await follower.until_joined()
            await start()
            assert (await follower.whole(text))["gaps"] == []
