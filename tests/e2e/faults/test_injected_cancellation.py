"""Case 23: a task is cancelled at every await of the broker's client, while it waits and as the answer comes. No reply
is ever read by another command, no connection is lost, and what Redis holds is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.broker.claims import Claim, Claims
from deltafan.broker.connections import Connections
from deltafan.broker.intake import Intake, Taken
from deltafan.broker.keys import GROUP, partition
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import APPEND, Arg
from deltafan.broker.subscriber import Subscriber
from deltafan.chaos.rig import eventually
from deltafan.events import Done, EventId, TextDelta, Usage
from deltafan.llm.cache.redis import RedisCache
from deltafan.llm.limits.budget import Amount, Budget, Granted
from deltafan.llm.limits.shared import RedisStore
from deltafan.settings import JobLimits, RedisSettings, Retention, WorkerSettings
from deltafan.wire import encode
from tests.oracle import check_order, check_whole

SPEC = {"model": "m", "prompt": "x"}
_NUMBERS = count(1)


class Interrupted:
    """Awaits a coroutine, and has the task that does so cancelled at one of its suspensions."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, when: str) -> None:
        """:param when: `waiting`: as it suspends; `answered`: in the moment in which what it waits for has come."""
        self._work = work
        self._at = at
        self._when = when
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._at:
                self._arm(waits_for)
            try:
                error = None
                yield waits_for
            except BaseException as thrown:
                error = thrown

    def _arm(self, waits_for: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._when == "answered" and waits_for is not None:
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


@dataclass
class Stage:
    """A client whose commands are interrupted, and another that looks at what became of them."""

    queue: AsyncQueue
    intake: Intake
    claims: Claims
    subscriber: Subscriber
    eyes: AsyncQueue
    plain: Redis

    @property
    def connections(self) -> Connections:
        return self.queue.connections

    async def claimed(self) -> Claim:
        taken, *_ = [*await self.intake.take(5), *await self.held()]
        claim = await self.claims.claim(taken, "scripted", can_continue=True)
        assert isinstance(claim, Claim)
        return claim

    async def held(self) -> list[Taken]:
        looked = [await self.intake.look(held) for held in await self.intake.pending()]
        return [taken for taken in looked if taken is not None]

    async def finish(self, claim: Claim, first: int, *events: Any) -> str:
        encoded = [encode(claim.job_id, EventId(1, first + n), event) for n, event in enumerate(events)]
        record: dict[str, Arg] = {"finish_reason": "stop", "chars": 0}
        status, _ = await self.claims.finish(claim, first, encoded, "done", record, acknowledge=True)
        return status

    async def check_replies(self) -> None:
        """Many commands at once on each of its clients: each gets its own answer."""
        redis = self.connections
        for client in (redis.commands, redis.appends, redis.blocking):
            asked = [b"%d" % next(_NUMBERS) for _ in range(10)]
            assert await asyncio.gather(*(client.echo(text) for text in asked)) == asked

    async def check_free(self) -> None:
        """What a task was cancelled for in the middle may still be brought to its end behind it, but no longer."""

        async def free() -> bool:
            return not any(pool._in_use_connections for pool in self.connections._pools)

        await eventually(free, timeout=5.0)


After = Callable[[], Awaitable[None]]
Prepared = tuple[Coroutine[Any, Any, Any], After]


async def _enqueue(stage: Stage) -> Prepared:
    spec = SPEC | {"idempotency_key": f"key-{next(_NUMBERS)}"}

    async def one() -> None:
        job = await stage.queue.enqueue(spec)
        assert (await stage.eyes.enqueue(spec)).id == job.id
        await job.cancel()
        assert await stage.plain.xlen("deltafan:{0}:queue:default:normal") == 0

    return stage.queue.enqueue(spec), one


async def _status(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)

    async def same() -> None:
        assert (await job.status()).state == "queued"
        await job.cancel()

    return job.status(), same


async def _list(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)

    async def same() -> None:
        assert (await stage.queue.jobs(limit=1)).jobs[0].id == job.id
        await job.cancel()

    return stage.queue.jobs(limit=5), same


async def _cancel(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)

    async def cancelled() -> None:
        assert (await job.cancel()).state == "cancelled"
        check_whole([event async for event in stage.eyes.job(job.id).events()])

    return job.cancel(), cancelled


async def _events(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)
    claim = await stage.claimed()
    await stage.finish(claim, 1, TextDelta("a"), Usage(), Done("stop", text_length=1))

    async def follow() -> None:
        async with aclosing(job.events()) as events:
            check_whole([event async for event in events], "a")

    return follow(), follow


async def _live_events(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)
    claim = await stage.claimed()

    async def follow() -> None:
        async with aclosing(job.events()) as events:
            first = await anext(events)
            check_order([first])

    async def to_the_end() -> None:
        await follow()
        ended = asyncio.create_task(stage.finish(claim, 1, TextDelta("a"), Usage(), Done("stop", text_length=1)))
        async with aclosing(job.events()) as events:
            check_whole([event async for event in events], "a")
        assert await ended == "finished"

    return follow(), to_the_end


async def _waiting_job(stage: Stage) -> After:
    """Enqueue one. Gives a check that it is held or waits, once."""
    job = await stage.queue.enqueue(SPEC)

    async def once() -> None:
        found = {taken.entry for taken in [*await stage.held(), *await stage.intake.take(5)]}
        assert len(found) == 1
        await job.cancel()

    return once


async def _take(stage: Stage) -> Prepared:
    once = await _waiting_job(stage)
    return stage.intake.take(5), once


async def _wait(stage: Stage) -> Prepared:
    once = await _waiting_job(stage)
    return stage.intake.wait(5.0), once


async def _claim(stage: Stage) -> Prepared:
    await stage.queue.enqueue(SPEC)
    [taken] = await stage.intake.take(5)

    async def the_same_attempt() -> None:
        claim = await stage.claims.claim(taken, "scripted", can_continue=True)
        assert isinstance(claim, Claim)
        assert claim.attempt == 1
        assert await stage.finish(claim, 1, Usage(), Done("stop")) == "finished"

    return stage.claims.claim(taken, "scripted", can_continue=True), the_same_attempt


async def _adopt(stage: Stage) -> Prepared:
    await stage.plain.xadd("deltafan:{0}:queue:default:normal", {"job": b'{"model":"m","prompt":"x"}'})
    [taken] = await stage.intake.take(5)

    async def the_same_attempt() -> None:
        claim = await stage.claims.claim(taken, "scripted", can_continue=True)
        assert isinstance(claim, Claim)
        assert claim.attempt == 1
        assert await stage.finish(claim, 1, Usage(), Done("stop")) == "finished"

    return stage.claims.claim(taken, "scripted", can_continue=True), the_same_attempt


async def _append(stage: Stage) -> Prepared:
    await stage.queue.enqueue(SPEC)
    claim = await stage.claimed()
    keys = partition(claim.job_id)
    places = [keys.job(claim.job_id), keys.log(claim.job_id), keys.live(claim.job_id)]
    event = encode(claim.job_id, EventId(1, 1), TextDelta("a"))

    def append() -> Coroutine[Any, Any, Any]:
        args = [1, claim.worker, 1, 1, 1, "", "", event]
        return APPEND.run(stage.connections.appends, places, args)

    async def once() -> None:
        assert (await append())[0] in (b"appended", b"duplicate")
        assert await stage.finish(claim, 2, Usage(), Done("stop", text_length=1)) == "finished"
        check_whole([event async for event in stage.eyes.job(claim.job_id).events()], "a")

    return append(), once


async def _finish(stage: Stage) -> Prepared:
    await stage.queue.enqueue(SPEC)
    claim = await stage.claimed()
    finals = (TextDelta("a"), Usage(), Done("stop", text_length=1))

    async def once() -> None:
        assert await stage.finish(claim, 1, *finals) in ("finished", "duplicate")
        check_whole([event async for event in stage.eyes.job(claim.job_id).events()], "a")
        assert (await stage.plain.xpending("deltafan:{0}:queue:default:normal", GROUP))["pending"] == 0

    return stage.finish(claim, 1, *finals), once


async def _subscribe(stage: Stage) -> Prepared:
    channel = f"channel-{next(_NUMBERS)}"
    heard: list[bytes] = []
    subscribe = stage.subscriber.subscribe

    async def hears_once() -> None:
        await stage.subscriber.unsubscribe(channel)
        await subscribe(channel, heard.append, lambda: None)
        await stage.plain.publish(channel, b"now")
        await eventually(lambda: _is(bool(heard)))
        assert heard == [b"now"]
        await stage.subscriber.unsubscribe(channel)
        await eventually(lambda: _nobody_hears(stage, channel))

    return subscribe(channel, heard.append, lambda: None), hears_once


async def _unsubscribe(stage: Stage) -> Prepared:
    channel = f"channel-{next(_NUMBERS)}"
    await stage.subscriber.subscribe(channel, lambda _: None, lambda: None)

    async def nobody() -> None:
        await stage.subscriber.unsubscribe(channel)
        await eventually(lambda: _nobody_hears(stage, channel))

    return stage.subscriber.unsubscribe(channel), nobody


class _Reader:
    def live(self, entry: Any) -> None: ...

    def gone(self) -> None: ...

    async def replay(self, entries: list[Any]) -> None: ...


async def _join(stage: Stage) -> Prepared:
    job = await stage.queue.enqueue(SPEC)
    claim = await stage.claimed()
    hub, reader = await stage.queue.hub(), _Reader()

    async def join() -> None:
        async with hub.feed(job.id) as feed:
            await feed.join(None, reader.replay, reader)
            feed.leave(reader)

    async def nobody() -> None:
        await join()
        await eventually(lambda: _nobody_hears(stage, partition(job.id).live(job.id)))
        assert await stage.finish(claim, 1, Usage(), Done("stop")) == "finished"

    return join(), nobody


async def _limit(stage: Stage) -> Prepared:
    name, budget = f"limit-{next(_NUMBERS)}", Budget(requests=5, window=3600.0)
    store = RedisStore(stage.connections.commands, name, budget)

    async def take_and_settle() -> None:
        granted = await store.take("mine", Amount(0, 3))
        assert isinstance(granted, Granted)
        await store.settle(granted, Amount(0, 3), 0)

    async def nothing_is_spent() -> None:
        await store.aclose()
        again = RedisStore(stage.connections.commands, name, budget)

        async def free() -> bool:
            granted = await again.take("other", Amount(0, 5))
            if isinstance(granted, Granted):
                await again.settle(granted, Amount(0, 5), 0)
            return isinstance(granted, Granted)

        await eventually(free)
        await again.aclose()

    return take_and_settle(), nothing_is_spent


async def _cache(stage: Stage) -> Prepared:
    cache, key = RedisCache(stage.connections.commands), f"{next(_NUMBERS):064x}"

    async def use() -> None:
        await cache.set(key, b"value")
        assert await cache.get(key) == b"value"
        await cache.delete(key)
        assert await cache.get(key) is None

    return use(), use


async def _is(value: bool) -> bool:
    return value


async def _nobody_hears(stage: Stage, channel: str) -> bool:
    return (await stage.plain.pubsub_numsub(channel))[0][1] == 0


OPERATIONS = {
    operation.__name__.strip("_"): operation
    for operation in (
        _enqueue, _status, _list, _cancel, _events, _live_events, _take, _wait, _claim, _adopt, _append, _finish,
        _subscribe, _unsubscribe, _join, _limit, _cache,
    )
}  # fmt: skip


@pytest_asyncio.fixture
async def stage(redis_settings: RedisSettings, queue: AsyncQueue) -> AsyncIterator[Stage]:
    async with Redis.from_url(redis_settings.url) as plain, AsyncQueue(redis_settings) as subject:
        connections = subject.connections
        async with Subscriber(connections) as subscriber:
            intake = Intake(connections, "w1", ["default"], 1)
            await intake.ensure_groups()
            claims = Claims(connections.commands, "w1", WorkerSettings(), Retention(), JobLimits())
            yield Stage(subject, intake, claims, subscriber, queue, plain)


@pytest.mark.parametrize("when", ["waiting", "answered"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "connecting"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_at_any_await_it_crosses_no_replies_and_leaks_no_connection(
    stage: Stage, name: str, connected: bool, when: str
) -> None:
    cancelled = 0
    for at in count(1):
        work, after = await OPERATIONS[name](stage)
        if not connected:
            for pool in stage.connections._pools:
                await pool.disconnect()
        interrupted = Interrupted(work, at, when)

        async def run(interrupted: Interrupted = interrupted) -> None:
            await interrupted

        task = asyncio.create_task(run())
        async with asyncio.timeout(20):
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        cancelled += task.cancelled()
        await stage.check_free()
        await stage.check_replies()
        await after()
        if interrupted.suspensions < at:
            break
    assert cancelled or name == "unsubscribe"


async def test_many_cancelled_commands_leave_as_many_connections_as_there_were(
    redis_settings: RedisSettings, queue: AsyncQueue
) -> None:
    async def clients() -> int:
        return len(await queue.connections.commands.client_list())

    await queue.connections.commands.ping()
    before = await clients()
    async with AsyncQueue(redis_settings) as subject:
        for round_ in range(200):
            tasks = [asyncio.create_task(subject.enqueue(SPEC)) for _ in range(5)]
            for _ in range(round_ % 7):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for pool in subject.connections._pools:
            assert not pool._in_use_connections
        asked = [b"%d" % number for number in range(300)]
        assert await asyncio.gather(*(subject.connections.commands.echo(text) for text in asked)) == asked

    async def as_before() -> bool:
        return await clients() == before

    await eventually(as_before)
