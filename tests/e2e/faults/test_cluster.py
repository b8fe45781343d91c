"""deltafan on a Redis Cluster: everything works, and what befalls one node costs the other nodes' jobs nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from deltafan.broker.blocking import BlockingQueue
from deltafan.broker.connections import Connections
from deltafan.broker.dead import list_dead, retry_dead
from deltafan.broker.keys import Partition
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.broker.stats import queue_depths, recent_jobs, worker_beats
from deltafan.broker.subscriber import Subscriber
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.provider import Provider, Script, Text, parse_faults, running
from deltafan.errors import BrokerUnavailable
from deltafan.events import Event, Meta
from deltafan.job import partition_of
from deltafan.llm.cache.redis import RedisCache
from deltafan.llm.limits.budget import Amount, Budget, Granted, Waiting
from deltafan.llm.limits.shared import RedisStore
from deltafan.settings import RedisSettings
from tests.conftest import StartWorker
from tests.e2e.cli_kit import cli
from tests.e2e.faults.conftest import REDIS_BINARY
from tests.e2e.relay_kit import eventually, running_relay, streaming, text_of
from tests.oracle import check_whole

PARTITIONS = 6
TEXT = "word " * 200
SLOW = Script(source=Text(TEXT), rate=50)
"""Four seconds of text: long enough for a fault to strike in its middle."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[EmbeddedCluster]:
    """Three primaries that live as long as the tests of this file, which flush them."""
    async with EmbeddedCluster(binary=REDIS_BINARY) as cluster:
        yield cluster


@pytest_asyncio.fixture
async def cluster(shared: EmbeddedCluster) -> EmbeddedCluster:
    """Three empty primaries."""
    for node in range(3):
        async with shared.client(node) as client:
            await client.flushall()
            await client.script_flush()
    return shared


@pytest_asyncio.fixture
async def replicated() -> AsyncIterator[EmbeddedCluster]:
    """Three primaries with a replica each, for one test."""
    async with EmbeddedCluster(replicas=True, binary=REDIS_BINARY) as cluster:
        yield cluster


@pytest.fixture
def redis_settings(request: pytest.FixtureRequest) -> RedisSettings:
    """Of the cluster that the test names, else the shared one."""
    name = "replicated" if "replicated" in request.fixturenames else "cluster"
    return _settings(request.getfixturevalue(name))


def _settings(cluster: EmbeddedCluster) -> RedisSettings:
    return RedisSettings(url=cluster.url, partitions=PARTITIONS, command_timeout=5.0, probe_interval=0.5)


async def _all(queue: AsyncQueue, job_id: str) -> list[Event]:
    return [event async for event in queue.job(job_id).events()]


async def _spread(queue: AsyncQueue, **fields: object) -> dict[int, str]:
    """One job in every partition; those beyond are cancelled."""
    found: dict[int, str] = {}
    while len(found) < PARTITIONS:
        job = await queue.enqueue({"model": "m", "prompt": "x"} | fields)
        if partition_of(job.id) in found:
            await job.cancel()
        else:
            found[partition_of(job.id)] = job.id
    return found


class Follower:
    """Follows a job from its beginning to its end."""

    def __init__(self, queue: AsyncQueue, job_id: str) -> None:
        self.events: list[Event] = []
        self._follows = asyncio.Event()
        self.task = asyncio.create_task(self._follow(queue, job_id))

    async def _follow(self, queue: AsyncQueue, job_id: str) -> None:
        async for event in queue.job(job_id).events():
            self.events.append(event)
            self._follows.set()
        self._follows.set()

    async def whole(self) -> list[Event]:
        """All events, which the oracle has found right."""
        await self.task
        check_whole(self.events, TEXT)
        return self.events

    async def follows(self) -> None:
        await self._follows.wait()


async def _follow_all(queue: AsyncQueue, jobs: dict[int, str]) -> dict[int, Follower]:
    """A follower of every job, each of which has begun."""
    followers = {number: Follower(queue, job_id) for number, job_id in jobs.items()}
    await asyncio.gather(*(follower.follows() for follower in followers.values()))
    return followers


async def _streaming(provider: Provider, jobs: int) -> None:
    """Until that many jobs have text."""
    await provider.until(lambda requests: sum(request.text_length > 0 for request in requests) >= jobs)


async def test_a_job_of_every_partition_goes_its_whole_way_through_worker_relay_and_client(
    queue: AsyncQueue, start_worker: StartWorker, http: aiohttp.ClientSession, cluster: EmbeddedCluster
) -> None:
    await start_worker()
    jobs = await _spread(queue, delay=0.1)
    assert {await cluster.owner_of(number) for number in jobs} == {0, 1, 2}
    async with running_relay(queue) as relay:
        for job_id in jobs.values():
            async with streaming(http, relay.url, job_id) as stream:
                followed = asyncio.create_task(_all(queue, job_id))
                seen = await stream.rest()
                transcript = check_whole(await followed)
                assert text_of(seen) == transcript.text != ""
                assert (await queue.job(job_id).result()).text == transcript.text


async def test_the_live_channel_is_sharded_and_a_users_own_channel_is_not(
    queue: AsyncQueue, start_worker: StartWorker, cluster: EmbeddedCluster
) -> None:
    await start_worker()
    async with cluster.client(0) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("mine")
        await pubsub.get_message(timeout=5)
        async with running(SLOW) as slow:
            await start_worker(slow)
            job = await queue.enqueue(model="m", prompt="x", channel="mine")
            following = asyncio.create_task(_all(queue, job.id))
            await slow.until(lambda requests: True)
            owner = await cluster.owner_of(partition_of(job.id))
            events = await following
            async with cluster.client(owner) as at_owner:
                published = int((await at_owner.info("commandstats"))["cmdstat_spublish"]["calls"])
        assert published >= len(events)
        heard = 0
        while (message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)) is not None:
            heard += 1
            if b'"type":"done"' in message["data"]:
                break
        assert heard >= len(events)


async def test_jobs_are_cancelled_while_they_wait_and_while_they_run(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    for job_id in (await _spread(queue, delay=60)).values():
        assert (await queue.job(job_id).cancel()).state == "cancelled"
    async with running(Script(source=Text("word " * 2000), rate=50)) as slow:
        # By the message alone: no heartbeat asks for cancelled jobs before the test's time is up.
        await start_worker(slow, lease=600)
        jobs = await _spread(queue)
        await slow.until(
            lambda requests: sum(r.text_length > 0 and not r.client_closed for r in requests) >= PARTITIONS
        )
        for job_id in jobs.values():
            assert (await queue.job(job_id).cancel()).state == "cancelling"
            check_whole(await _all(queue, job_id))
        await slow.until(lambda requests: all(request.client_closed for request in requests))


async def test_an_idempotency_key_finds_its_first_job(queue: AsyncQueue) -> None:
    for n in range(PARTITIONS * 2):
        first = await queue.enqueue(model="m", prompt="x", idempotency_key=f"k{n}")
        again = await queue.submit(model="m", prompt="x", idempotency_key=f"k{n}")
        assert (again.id, again.created) == (first.id, False)


async def test_jobs_are_listed_and_counted_over_all_nodes(queue: AsyncQueue, start_worker: StartWorker) -> None:
    waiting = await _spread(queue, delay=60)
    redis = queue.connections.commands
    [depth] = await queue_depths(redis, PARTITIONS, ["default"])
    assert depth.delayed == PARTITIONS
    page = await queue.jobs(state="delayed", limit=2)
    seen = [status.id for status in page.jobs]
    while page.cursor is not None:
        page = await queue.jobs(state="delayed", limit=2, cursor=page.cursor)
        seen += [status.id for status in page.jobs]
    assert sorted(seen) == sorted(waiting.values())
    assert {job.id for job in await recent_jobs(redis, PARTITIONS, "default", 500)} >= set(waiting.values())
    worker = await start_worker()

    async def seen_working() -> bool:
        return [beat.name for beat in await worker_beats(redis, ["default"])] == [worker.engine.worker]

    await _spread(queue)  # Redis 7.0 knows a consumer from its first entry on
    await eventually(seen_working)


async def test_a_dead_letter_is_listed_and_run_again(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(faults=parse_faults("bad_request"))) as failing:
        worker = await start_worker(failing)
        jobs = await _spread(queue)
        for job_id in jobs.values():
            check_whole(await _all(queue, job_id))
        await worker.drain()
    redis = queue.connections.commands
    letters = await list_dead(redis, PARTITIONS, "default")
    assert {letter.job_id for letter in letters} >= set(jobs.values())
    await start_worker()
    for letter in letters:
        again = await retry_dead(redis, letter, queue.limits)
        assert check_whole(await _all(queue, again.id)).done.finish_reason == "stop"  # type: ignore[union-attr]
    assert await list_dead(redis, PARTITIONS, "default") == []


async def test_a_lost_workers_jobs_are_taken_over_on_every_node(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(SLOW) as slow:
        lost = await start_worker(slow, lease=1)
        jobs = await _spread(queue)
        await _streaming(slow, PARTITIONS)
        await lost.vanish()
        await start_worker(slow, lease=5)
        for events in await asyncio.gather(*(_all(queue, job_id) for job_id in jobs.values())):
            transcript = check_whole(events, TEXT)
            assert transcript.done is not None
            assert max(event.attempt for event in events if isinstance(event, Meta)) == 2


async def test_a_slot_that_moves_in_the_middle_of_a_stream_loses_nothing(
    queue: AsyncQueue, start_worker: StartWorker, cluster: EmbeddedCluster, http: aiohttp.ClientSession
) -> None:
    async with running(SLOW) as slow, running_relay(queue) as relay:
        await start_worker(slow)
        jobs = await _spread(queue)
        async with streaming(http, relay.url, jobs[0]) as stream:
            followers = await _follow_all(queue, jobs)
            await _streaming(slow, PARTITIONS)
            slot, source = cluster.slot(0), await cluster.owner_of(0)

            async def between() -> None:
                # What the slot has left behind is still served, to who knows the old map and to who knows none.
                async with AsyncQueue(_settings(cluster)) as fresh:
                    assert (await fresh.job(jobs[0]).status()).state == "running"

            for target in ((source + 1) % 3, (source + 2) % 3):
                await cluster.migrate(slot, target, between)
            assert text_of(await stream.rest()) == TEXT
        for follower in followers.values():
            assert [event.attempt for event in await follower.whole() if isinstance(event, Meta)] == [1]
        for job_id in (await _spread(queue)).values():
            check_whole(await _all(queue, job_id), TEXT)


async def test_a_primary_handed_over_in_order_in_the_middle_of_a_stream_loses_nothing(
    queue: AsyncQueue, start_worker: StartWorker, replicated: EmbeddedCluster, http: aiohttp.ClientSession
) -> None:
    async with running(SLOW) as slow, running_relay(queue) as relay:
        await start_worker(slow)
        jobs = await _spread(queue)
        async with streaming(http, relay.url, jobs[0]) as stream:
            followers = await _follow_all(queue, jobs)
            await _streaming(slow, PARTITIONS)
            await replicated.failover(0)
            assert text_of(await stream.rest()) == TEXT
        for follower in followers.values():
            assert [event.attempt for event in await follower.whole() if isinstance(event, Meta)] == [1]


async def test_with_a_primary_killed_the_others_jobs_go_on_and_its_own_go_on_after(
    queue: AsyncQueue, start_worker: StartWorker, replicated: EmbeddedCluster
) -> None:
    async with running(SLOW) as slow:
        await start_worker(slow, lease=5)
        jobs = await _spread(queue)
        victim = await replicated.owner_of(0)
        there = {number for number in jobs if await replicated.owner_of(number) == victim}
        followers = await _follow_all(queue, jobs)
        await _streaming(slow, PARTITIONS)
        await replicated.kill(victim)
        for number in set(jobs) - there:
            assert [event.attempt for event in await followers[number].whole() if isinstance(event, Meta)] == [1]

        async def taken_over() -> bool:
            return await replicated.owner_of(0) != victim

        await eventually(taken_over)
        for number in there:
            await followers[number].whole()
            assert (await queue.job(jobs[number]).status()).state == "done"
        await replicated.start(victim)
        await replicated.whole()
        for job_id in (await _spread(queue)).values():
            check_whole(await _all(queue, job_id), TEXT)


async def _job_in(queue: AsyncQueue, number: int, **fields: object) -> AsyncJob:
    """A job of a partition, enqueued while that of others may fail; those of others are cancelled."""
    while True:
        try:
            job = await queue.enqueue({"model": "m", "prompt": "x"} | fields)
        except BrokerUnavailable:  # its partition is on the node that is gone
            continue
        if partition_of(job.id) == number:
            return job
        await job.cancel()


@pytest.fixture
async def partial(cluster: EmbeddedCluster) -> EmbeddedCluster:
    """One that goes on serving what it can while a node is away."""
    for node in range(3):
        async with cluster.client(node) as client:
            await client.config_set("cluster-require-full-coverage", "no")
    return cluster


@pytest.mark.parametrize("worker", ["started before", "started meanwhile"])
async def test_with_a_primary_gone_for_good_new_jobs_of_the_others_are_run_and_its_own_when_it_is_back(
    queue: AsyncQueue, start_worker: StartWorker, partial: EmbeddedCluster, worker: str
) -> None:
    if worker == "started before":
        await start_worker(lease=2)
    victim = await partial.owner_of(0)
    there = {n for n in range(PARTITIONS) if await partial.owner_of(n) == victim}
    await partial.kill(victim)
    try:
        if worker == "started meanwhile":
            await start_worker(lease=2)
        for number in set(range(PARTITIONS)) - there:
            for fields in ({}, {"delay": 0.1}):
                check_whole(await _all(queue, (await _job_in(queue, number, **fields)).id))
    finally:
        await partial.start(victim)
        await partial.whole()
    for number in there:
        check_whole(await _all(queue, (await _job_in(queue, number)).id))


async def test_a_worker_that_started_while_a_node_was_away_hears_of_cancels_there_when_it_is_back(
    queue: AsyncQueue, start_worker: StartWorker, partial: EmbeddedCluster
) -> None:
    victim = await partial.owner_of(0)
    async with running(Script(source=Text("word " * 2000), rate=50)) as slow:
        await partial.kill(victim)
        try:
            worker = await start_worker(slow, lease=600)  # no heartbeat asks for cancelled jobs in the test's time
        finally:
            await partial.start(victim)
            await partial.whole()

        async def listens() -> bool:
            channel = f"{Partition(0).control}{worker.engine.worker}"
            async with partial.client(victim) as client:
                counts = await client.execute_command("PUBSUB", "SHARDNUMSUB", channel)
            return bool(counts[1])

        await eventually(listens)
        await worker.engine._beat()  # the next one is far
        job = await _job_in(queue, 0)
        await _streaming(slow, 1)
        assert (await job.cancel()).state == "cancelling"
        check_whole(await _all(queue, job.id))


async def test_a_node_that_hangs_keeps_no_job_of_the_others_waiting(
    queue: AsyncQueue, start_worker: StartWorker, partial: EmbeddedCluster
) -> None:
    """It takes connections, and answers nothing. Jobs of the others are run, promoted, and taken over."""
    hung = partial.nodes[await partial.owner_of(0)]
    owners = {number: partial.nodes[await partial.owner_of(number)] for number in range(PARTITIONS)}
    other = next(number for number, owner in owners.items() if owner is not hung)
    async with running(SLOW) as slow:
        lost = await start_worker(slow, lease=2)
        left = await _job_in(queue, other)
        await _streaming(slow, 1)
        delayed = await _job_in(queue, other, delay=1.0)
        await lost.vanish()
        await start_worker(lease=2)
        os.kill(hung.pid, signal.SIGSTOP)
        try:
            for job in (delayed, left):
                check_whole(await _all(queue, job.id))
            assert (await left.status()).attempt == 2
        finally:
            os.kill(hung.pid, signal.SIGCONT)
            await partial.whole()


async def test_the_doctor_looks_at_every_node_and_at_the_number_of_partitions(partial: EmbeddedCluster) -> None:
    async def doctor(partitions: int) -> list[dict[str, str]]:
        settings = {"REDIS_URL": partial.url, "DELTAFAN_PARTITIONS": str(partitions)}
        return (await cli("doctor", "--no-provider", "--json", **settings)).json()  # type: ignore[no-any-return]

    async with partial.client(1) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = await doctor(1)
        names = [f"127.0.0.1:{node.port}" for node in partial.nodes]
        evictions = {f["seen"].partition(": ")[0]: f["level"] for f in found if f["check"] == "eviction"}
        assert evictions == {name: "fail" if name == names[1] else "ok" for name in names}
        assert [f["level"] for f in found if f["check"] == "persistence"] == ["ok"]
        [one] = [f for f in found if f["check"] == "partitions"]
        assert (one["level"], "DELTAFAN_PARTITIONS" in one["mend"]) == ("warn", True)
    finally:
        async with partial.client(1) as client:
            await client.config_set("maxmemory-policy", "noeviction")
    await partial.kill(2)
    try:
        found = await doctor(PARTITIONS)
    finally:
        await partial.start(2)
        await partial.whole()
    assert [f["seen"] for f in found if f["level"] == "fail"] == [f"{names[2]} does not answer"]
    assert [f["level"] for f in found if f["check"] == "partitions"] == ["ok"]


async def test_a_client_that_knows_one_node_finds_the_others(cluster: EmbeddedCluster) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster.nodes[1].port}"
    async with Connections(RedisSettings(url=url)) as connections:
        for number in range(PARTITIONS):
            assert await connections.commands.set(f"deltafan:{{{number}}}:x", "1")
        assert connections.slots is not None
        assert len(connections.slots.primaries) == 3


async def test_shared_limits_and_the_cache_use_the_cluster(queue: AsyncQueue) -> None:
    redis = queue.connections.commands
    for n in range(6):
        store = RedisStore(redis, f"limit-{n}", Budget(requests=1))
        assert isinstance(await store.take("a", Amount(0, 1)), Granted)
        assert isinstance(await store.take("b", Amount(0, 1)), Waiting)
        cache = RedisCache(redis)
        await cache.set(f"{n:064x}", b"value")
        assert await cache.get(f"{n:064x}") == b"value"


async def test_a_blocking_queue_works_on_a_cluster(start_worker: StartWorker, redis_settings: RedisSettings) -> None:
    await start_worker()

    def in_a_thread() -> str:
        with BlockingQueue(lambda: AsyncQueue(redis_settings)) as queue:
            return queue.enqueue(model="m", prompt="x").result(timeout=20).text

    assert await asyncio.to_thread(in_a_thread)


@pytest.mark.parametrize("fault", ["the slot moves", "its primary is handed over", "its primary is killed"])
async def test_a_subscription_goes_after_its_slot_and_tells_of_the_gap(
    replicated: EmbeddedCluster, redis_settings: RedisSettings, fault: str
) -> None:
    channel = Partition(0).live("0-x")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    gap = asyncio.Event()
    async with Connections(redis_settings) as connections, Subscriber(connections) as subscriber:
        await subscriber.subscribe(channel, heard.put_nowait, gap.set)
        owner = await replicated.owner_of(0)
        match fault:
            case "the slot moves":
                await replicated.migrate(replicated.slot(0), (owner + 1) % 3)
            case "its primary is handed over":
                await replicated.failover(0)
            case _:
                await replicated.kill(owner)
        await gap.wait()

        async def arrives() -> bool:  # an old primary may confirm once more before it knows that it is none
            await connections.commands.execute_command("SPUBLISH", channel, "after")
            return not heard.empty()

        await eventually(arrives)
        assert await replicated.owner_of(0) != owner
