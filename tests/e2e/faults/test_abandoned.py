"""Case 25: `cancel_if_abandoned`: a running job ends when nobody has followed it for so long. Who counts, and who not.

Nothing here waits for a time to pass: a job that nobody follows, begun later, is the clock. When it has ended, a job
that still runs is one whose follower counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from deltafan.broker.cluster import ClusterRedis, beside
from deltafan.broker.keys import partition
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.chaos.rig import TEXT, eventually
from deltafan.devserver.provider import Provider, Script, Text, running
from deltafan.devserver.pusher import PusherEmulator
from deltafan.events import Done
from deltafan.settings import PusherSettings, TokenSettings
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.pusher.sink import pusher_sinks
from tests.conftest import StartWorker
from tests.e2e.faults.topologies_kit import numsub
from tests.e2e.js_client_kit import following
from tests.e2e.relay_kit import Relay, running_relay
from tests.js_kit import needs_node
from tests.oracle import check_whole

TOKENS = TokenSettings(token_keys=(f"k1=interest-secret-{'x' * 32}",))
ENDLESS = Script(source=Text(TEXT * 500), rate=5)
PATIENCE = 1.0


@pytest.fixture
async def endless() -> AsyncIterator[Provider]:
    """Its answers do not end within a test's time."""
    async with running(ENDLESS) as provider:
        yield provider


async def enqueue(queue: AsyncQueue, **fields: Any) -> AsyncJob:
    return await queue.enqueue(model="m", prompt="x", cancel_if_abandoned=PATIENCE, **fields)


async def ended(job: AsyncJob) -> None:
    """Wait for its end without following it."""

    async def has() -> bool:
        return (await job.status()).has_ended

    await eventually(has)


async def listeners(queue: AsyncQueue, job: AsyncJob) -> int:
    return await numsub(queue.connections.commands, job.channel)


async def is_heard(queue: AsyncQueue, job: AsyncJob) -> None:
    async def heard() -> bool:
        return bool(await listeners(queue, job))

    await eventually(heard)


async def check_abandoned(queue: AsyncQueue, job: AsyncJob) -> None:
    status = await job.status()
    assert (status.state, status.finish_reason) == ("cancelled", "cancelled")
    assert status.error == {
        "code": "cancelled",
        "message": "nobody followed the job for 1 s",
        "retryable": False,
        "will_retry": False,
    }
    events = [event async for event in job.events()]
    check_whole(events)
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "cancelled"
    assert await queue.connections.commands.pttl(partition(job.id).job(job.id)) > 0


# Followers whom Redis sees


@asynccontextmanager
async def by_sse(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as http, http.get(f"{relay.url}/v1/jobs/{job.id}/events") as answer:
        assert answer.status == 200
        await is_heard(queue, job)
        yield


@asynccontextmanager
async def by_python_client(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    async def follow() -> None:
        async for _ in job.events():
            pass

    task = asyncio.create_task(follow())
    await is_heard(queue, job)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def on_its_live_channel(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    redis = queue.connections.commands
    async with (await beside(redis, job.channel)).pubsub() as pubsub:
        await (pubsub.ssubscribe if isinstance(redis, ClusterRedis) else pubsub.subscribe)(job.channel)
        await is_heard(queue, job)
        yield


@asynccontextmanager
async def on_a_channel_of_the_users(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    redis = queue.connections.commands
    anywhere = (await redis.primaries())[-1] if isinstance(redis, ClusterRedis) else redis
    async with anywhere.pubsub() as pubsub:
        await pubsub.subscribe("a-room")
        await pubsub.get_message(timeout=10)
        yield


# And those who have to say so


async def goes_stale(queue: AsyncQueue, job: AsyncJob) -> None:
    """The time of an interest that nobody renews."""
    await queue.connections.commands.delete(partition(job.id).interest(job.id))


@asynccontextmanager
async def renewing_in_python(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    assert await job.renew_interest() == 30.0
    yield
    await goes_stale(queue, job)


@asynccontextmanager
async def renewing_at_the_relay(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as http, http.post(f"{relay.url}/v1/jobs/{job.id}/interest") as answer:
        assert (answer.status, await answer.json()) == (200, {"id": job.id, "renew_in": 30.0})
    yield
    await goes_stale(queue, job)


@asynccontextmanager
async def renewing_as_any_program_may(queue: AsyncQueue, job: AsyncJob, relay: Relay) -> AsyncIterator[None]:
    """One that listens at a replica, say. The command is that of docs/wire-format.md."""
    key = f"deltafan:{{{job.id.partition('-')[0]}}}:interest:{job.id}"
    await queue.connections.commands.execute_command("SET", key, "1", "PX", "90000")
    yield
    await goes_stale(queue, job)


FOLLOWERS = [
    by_sse,
    by_python_client,
    on_its_live_channel,
    on_a_channel_of_the_users,
    renewing_in_python,
    renewing_at_the_relay,
    renewing_as_any_program_may,
]


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_job_that_nobody_follows_is_cancelled_says_why_and_leaves_its_provider(
    queue: AsyncQueue, start_worker: StartWorker, endless: Provider
) -> None:
    await start_worker(endless)
    alone, unasked = await enqueue(queue), await queue.enqueue(model="m", prompt="does not ask for that")
    await ended(alone)
    await check_abandoned(queue, alone)
    await endless.until(lambda requests: any(record.client_closed for record in requests))
    assert (await unasked.status()).state == "running"


@pytest.mark.topologies("valkey", "cluster")
@pytest.mark.parametrize("follow", FOLLOWERS, ids=lambda f: f.__name__)
async def test_a_job_that_is_followed_goes_on_until_its_last_follower_has_left(
    queue: AsyncQueue, start_worker: StartWorker, endless: Provider, follow: Callable[..., Any]
) -> None:
    fields = {"channel": "a-room"} if follow is on_a_channel_of_the_users else {}
    job = await enqueue(queue, **fields)
    async with running_relay(queue) as relay:
        async with follow(queue, job, relay):
            await start_worker(endless)
            await ended(await enqueue(queue))
            assert (await job.status()).state == "running"
        await ended(job)
    await check_abandoned(queue, job)


async def test_a_job_waits_for_its_turn_however_long_nobody_follows_it(
    queue: AsyncQueue, start_worker: StartWorker, endless: Provider
) -> None:
    waiting = await enqueue(queue, delay=3600)
    await start_worker(endless)
    await ended(await enqueue(queue))
    assert (await waiting.status()).state == "delayed"


@needs_node
async def test_a_follower_by_pusher_alone_counts_because_deltafan_js_renews_its_interest(
    queue: AsyncQueue, start_worker: StartWorker, endless: Provider, emulator: PusherEmulator
) -> None:
    settings = PusherSettings(
        app_id=emulator.app_id,
        key=emulator.key,
        secret=emulator.secret,
        host=emulator.host,
        port=emulator.port,
        tls=False,
    )
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(running_relay(queue, pusher=settings))
        publisher = await stack.enter_async_context(Publisher(settings))
        job = await enqueue(queue, sinks=["pusher"])
        options = {"relay": relay.url, "pusher": True, "silence": 600_000}
        async with following(job.id, check=False, **options) as follower:
            await follower.until_joined()
            await eventually(lambda: _has(queue, partition(job.id).interest(job.id)))
            await start_worker(endless, {"sinks": {"pusher": pusher_sinks(publisher)}})
            await follower.until("event", lambda event: event["type"] == "text_delta")
            await ended(await enqueue(queue))
            assert await listeners(queue, job) == 0
            assert (await job.status()).state == "running"
            await follower.do("close")
        await goes_stale(queue, job)
        await ended(job)
    await check_abandoned(queue, job)


async def _has(queue: AsyncQueue, key: str) -> bool:
    return bool(await queue.connections.commands.exists(key))


# The right to it


@asynccontextmanager
async def asking(relay: Relay, credential: str | None) -> AsyncIterator[Callable[[str], Awaitable[tuple[int, Any]]]]:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    async with aiohttp.ClientSession(headers=headers) as http:

        async def ask(job_id: str) -> tuple[int, Any]:
            async with http.post(f"{relay.url}/v1/jobs/{job_id}/interest") as answer:
                body = await answer.json()
                return answer.status, body.get("renew_in") if answer.ok else body["error"]["code"]

        yield ask


async def test_an_interest_needs_what_the_jobs_events_need(queue: AsyncQueue) -> None:
    job, other = await enqueue(queue), await enqueue(queue)
    foreign = await enqueue(queue.for_tenant("acme"))
    keys = ("default=reads-and-writes", "default:enqueue=writes-only", "acme=of-somebody-else")
    minted = AsyncQueue(queue.settings, tokens=TOKENS).token(job)
    async with running_relay(queue, tokens=TOKENS, api_keys=keys) as relay:
        for credential, expected in {
            None: [401, 401, 401],
            "writes-only": [403, 403, 403],
            "reads-and-writes": [200, 200, 404],
            "of-somebody-else": [404, 404, 200],
            minted: [200, 404, 404],
        }.items():
            async with asking(relay, credential) as ask:
                found = [(await ask(known.id))[0] for known in (job, other, foreign)]
                assert found == expected, credential
                assert (await ask("0-no-such-job"))[0] in {401, 403, 404}


async def test_who_asks_is_told_when_to_renew_and_when_there_is_no_need(
    queue: AsyncQueue, start_worker: StartWorker, provider: Provider
) -> None:
    redis = queue.connections.commands
    entry: Any = await redis.xadd(partition("0-x").queue("default", "low"), {"job": b'{"model":"m","prompt":"x"}'})
    jobs = {
        "soon": await queue.enqueue(model="m", prompt="x", cancel_if_abandoned=20),
        "late": await queue.enqueue(model="m", prompt="x", cancel_if_abandoned=3600),
        "never": await queue.enqueue(model="m", prompt="x"),
        "nobody knows yet": queue.job(f"0-default-low-{entry.decode()}"),
    }
    assert {name: await job.renew_interest() for name, job in jobs.items()} == {
        "soon": 30.0,
        "late": 1200.0,
        "never": None,
        "nobody knows yet": 30.0,
    }
    assert not await _has(queue, partition(jobs["never"].id).interest(jobs["never"].id))
    assert 80_000 < await redis.pttl(partition("0-x").interest(jobs["soon"].id)) <= 90_000
    await start_worker(provider)
    for job in jobs.values():
        await job.result()
        assert await job.renew_interest() is None
    assert (await jobs["late"].status()).cancel_if_abandoned == 3600.0
