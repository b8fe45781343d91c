"""deltafan on a Redis behind Sentinel: a new primary is found at once, and what the old one lost is filled in."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.agreement import ask, client_of
from deltafan.devserver.provider import Provider, Script, Text, running
from deltafan.devserver.sentinel import SERVICE, EmbeddedSentinel
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.events import Event, Meta
from deltafan.settings import RedisSettings
from tests.conftest import StartWorker
from tests.e2e.faults.conftest import REDIS_BINARY
from tests.e2e.relay_kit import running_relay, streaming, text_of
from tests.oracle import check_whole

TEXT = "word " * 200
SLOW = Script(source=Text(TEXT), rate=50)
"""Four seconds of text: longer than the sentinels take to replace a primary."""


@pytest_asyncio.fixture
async def sentinel() -> AsyncIterator[EmbeddedSentinel]:
    async with EmbeddedSentinel(binary=REDIS_BINARY) as opened:
        yield opened


@pytest.fixture
def redis_settings(sentinel: EmbeddedSentinel) -> RedisSettings:
    return RedisSettings(url=sentinel.url, command_timeout=5.0, probe_interval=0.5)


async def _all(queue: AsyncQueue, job_id: str) -> list[Event]:
    return [event async for event in queue.job(job_id).events()]


async def _last_seq(sentinel: EmbeddedSentinel, node: int, job_id: str) -> int:
    """Of the last event in a job's log, as this node has it."""
    async with sentinel.client(node) as client:
        [(entry, _)] = await client.xrevrange(f"deltafan:{{0}}:log:{job_id}", count=1)
    return int(entry.partition(b"-")[2])


async def _streaming(provider: Provider) -> None:
    await provider.until(lambda requests: any(request.text_length > 100 for request in requests))


async def test_a_job_goes_its_whole_way_and_is_found_by_a_second_client(
    queue: AsyncQueue, start_worker: StartWorker, http: aiohttp.ClientSession, redis_settings: RedisSettings
) -> None:
    await start_worker()
    async with running_relay(queue) as relay:
        job = await queue.enqueue(model="m", prompt="x", delay=0.1)
        async with streaming(http, relay.url, job.id) as stream:
            transcript = check_whole(await _all(queue, job.id))
            assert text_of(await stream.rest()) == transcript.text != ""
    async with AsyncQueue(redis_settings) as other:
        assert (await other.job(job.id).status()).state == "done"


async def test_a_primary_replaced_in_order_in_the_middle_of_a_stream_leaves_every_follower_whole(
    queue: AsyncQueue, start_worker: StartWorker, sentinel: EmbeddedSentinel, http: aiohttp.ClientSession
) -> None:
    async with running(SLOW) as slow, running_relay(queue) as relay:
        await start_worker(slow, lease=10)
        job = await queue.enqueue(model="m", prompt="x")
        async with streaming(http, relay.url, job.id) as stream:
            following = asyncio.create_task(_all(queue, job.id))
            await _streaming(slow)
            before = await sentinel.primary()
            after = await sentinel.failover()
            assert before != after
            assert text_of(await stream.rest()) == TEXT
        events = await following
    check_whole(events, TEXT)
    assert [event.attempt for event in events if isinstance(event, Meta)] == [1]
    assert (await job.status()).state == "done"
    async with sentinel.client(after) as client:
        assert await client.xlen(f"deltafan:{{0}}:log:{job.id}") > 0
    # The old one is not even told yet: nobody asks it any more.
    later = await queue.enqueue(model="m", prompt="x")
    async with sentinel.client(after) as client:
        assert await client.exists(f"deltafan:{{0}}:job:{later.id}") == 1


async def test_a_primary_killed_in_the_middle_of_a_stream_leaves_every_follower_whole(
    queue: AsyncQueue, start_worker: StartWorker, sentinel: EmbeddedSentinel, http: aiohttp.ClientSession
) -> None:
    async with running(SLOW) as slow, running_relay(queue) as relay:
        await start_worker(slow, lease=10)
        job = await queue.enqueue(model="m", prompt="x")
        async with streaming(http, relay.url, job.id) as stream:
            following = asyncio.create_task(_all(queue, job.id))
            await stream.until("1-0")
            await _streaming(slow)
            killed = await sentinel.kill_primary()
            await sentinel.replaced(killed)
            assert text_of(await stream.rest()) == TEXT
        events = await following
        check_whole(events, TEXT)
        assert [event.attempt for event in events if isinstance(event, Meta)] == [1]
        await sentinel.start(killed)
        await sentinel.whole()
        later = await queue.enqueue(model="m", prompt="x")
        check_whole(await _all(queue, later.id), TEXT)


async def test_what_the_new_primary_lacks_is_filled_in_from_the_workers_memory(
    queue: AsyncQueue, start_worker: StartWorker, sentinel: EmbeddedSentinel
) -> None:
    """Replication is asynchronous: here the replica has stopped to follow a while before it takes over."""
    async with running(Script(source=Text(TEXT), rate=100)) as slow:
        await start_worker(slow, lease=30)
        job = await queue.enqueue(model="m", prompt="x")
        following = asyncio.create_task(_all(queue, job.id))
        await _streaming(slow)
        primary = await sentinel.primary()
        async with sentinel.client(1 - primary) as other, sentinel.client(primary) as old:
            # With a password that nobody asks for it cannot follow again, once its link has been cut.
            await other.config_set("masterauth", "unwanted")
            await old.execute_command("CLIENT", "KILL", "TYPE", "replica")
        await slow.until(lambda requests: any(request.text_length > 400 for request in requests))
        assert await _last_seq(sentinel, 1 - primary, job.id) < await _last_seq(sentinel, primary, job.id)
        killed = await sentinel.kill_primary()
        await sentinel.replaced(killed)
        events = await following
    check_whole(events, TEXT)
    status = await job.status()
    assert (status.state, status.attempt) == ("done", 1)
    async with AsyncQueue(queue.settings) as fresh:
        check_whole(await _all(fresh, job.id), TEXT)


async def test_sentinels_that_do_not_know_the_name_are_told_of_without_the_password(sentinel: EmbeddedSentinel) -> None:
    url = sentinel.url.replace("://", "://ann:hunter2@").replace("/mymaster", "/other")
    async with AsyncQueue(RedisSettings(url=url)) as queue:
        with pytest.raises(BrokerUnavailable, match="no sentinel knows the primary 'other'") as refused:
            await queue.enqueue(model="m", prompt="x")
    assert "hunter2" not in str(refused.value)


async def test_wrong_credentials_of_the_primary_are_told_as_such(sentinel: EmbeddedSentinel) -> None:
    url = sentinel.url.replace("://", "://ann:hunter2@")
    async with AsyncQueue(RedisSettings(url=url)) as queue:
        with pytest.raises(ConfigurationError) as refused:
            await queue.enqueue(model="m", prompt="x")
    assert "hunter2" not in str(refused.value)


async def test_sentinels_that_lag_behind_take_nobody_back_to_the_old_primary(
    sentinel: EmbeddedSentinel, redis_settings: RedisSettings
) -> None:
    """It takes writes still, and all are lost; a worker would find jobs there that it has ended elsewhere."""
    leader, *others = sentinel.sentinels
    before = sentinel.nodes[await sentinel.primary()].port
    async with Connections(redis_settings) as connections:
        assert await connections.commands.ping()
        sentinels = connections.sentinels
        assert sentinels is not None
        for server in (*others, *sentinel.nodes):  # by which one sentinel tells the others of it
            async with client_of(server) as client:
                await ask(client, "ACL", "SETUSER", "default", "-publish")
        async with client_of(leader) as client:
            await ask(client, "SENTINEL", "FAILOVER", SERVICE)
        async with asyncio.timeout(30):
            while (await sentinels.find())[1] == before:
                await asyncio.sleep(0.02)
        os.kill(leader.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                assert (await sentinels.find())[1] != before
        finally:
            os.kill(leader.pid, signal.SIGCONT)


async def test_one_sentinel_is_enough_while_the_others_are_away(
    sentinel: EmbeddedSentinel, redis_settings: RedisSettings
) -> None:
    for lost in sentinel.sentinels[:2]:
        await lost.kill()
    async with Connections(redis_settings) as connections:
        assert await connections.commands.ping()
        assert connections.sentinels is not None
        assert connections.sentinels.master == ("127.0.0.1", sentinel.nodes[await sentinel.primary()].port)
