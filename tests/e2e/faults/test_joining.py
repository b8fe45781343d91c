"""Case 10: followers that join at any moment miss nothing and see nothing twice.

An event that is published at the n-th point at which joining waits for anything, for every n there is, before and after
what it waits for has come; and two hundred followers at random moments, each with a cursor of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from deltafan.broker import hub as hub_module
from deltafan.broker.connections import Connections
from deltafan.broker.hub import Hub
from deltafan.broker.log import Entry
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.followers import Seen, by_client, by_sse
from deltafan.chaos.oracle import order_problems
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.events import Done, Event, EventId, TextDelta
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import K, Lab, Work
from tests.e2e.relay_kit import running_relay
from tests.oracle import check_whole

Happening = Callable[[], Awaitable[None]]


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with Connections(redis_settings) as connections:
        yield Lab(connections)


@pytest_asyncio.fixture
async def hub(lab: Lab) -> AsyncIterator[Hub]:
    async with Hub(lab.connections) as opened:
        yield opened


@pytest_asyncio.fixture
async def work(lab: Lab) -> Work:
    worker = await lab.worker()
    await lab.enqueue()
    return await worker.begin()


class Reader:
    """A hub's follower that keeps what it gets, and knows its end."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ended = asyncio.Event()

    def live(self, entry: Entry) -> None:
        self._add([entry])

    def gone(self) -> None:
        raise AssertionError("the job is there")

    async def replay(self, entries: list[Entry]) -> None:
        await asyncio.sleep(0)  # as a write to a connection may wait
        self._add(entries)

    def _add(self, entries: list[Entry]) -> None:
        assert not self.ended.is_set(), "nothing comes after the end"
        self.entries += entries
        if entries and entries[-1].type == "done":
            self.ended.set()

    @property
    def events(self) -> list[Event]:
        return [event for entry in self.entries if (event := entry.event()) is not None]


class Interrupted:
    """Runs a coroutine, and has something happen at the n-th point at which it waits.

    :param after: what it waits for has come, and it has not gone on yet; else it has not come yet.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None], happening: Happening, at: int, *, after: bool) -> None:
        self.waits = 0
        self.happened = False
        self.busy = False
        self.over = False
        """Nothing happens from now on."""
        self._coroutine = coroutine
        self._happening = happening
        self._at = at
        self._after = after

    def __await__(self) -> Generator[Any, Any, None]:
        go_on: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                future = go_on()
            except StopIteration:
                return
            now = self.waits == self._at
            self.waits += 1
            if now and not self._after:
                yield from self._happen()
            try:
                go_on = partial(self._coroutine.send, (yield future))
            except BaseException as error:  # for the coroutine to deal with
                go_on = partial(self._coroutine.throw, error)
            if now and self._after:
                yield from self._happen()

    def _happen(self) -> Generator[Any, Any, None]:
        if not self.over:
            self.happened = self.busy = True
            yield from self._happening().__await__()
            self.busy = False


async def _join(hub: Hub, job_id: str, after: EventId | None, reader: Reader) -> None:
    async with hub.feed(job_id) as feed:
        await feed.join(after, reader.replay, reader)
        await reader.ended.wait()


async def _say(hub: Hub, work: Work, *texts: str) -> None:
    """Returns when a feed that is subscribed has heard it."""
    feed = hub.feeds.get(work.id)
    hears = feed is not None and feed._ready is not None and feed._ready.done()
    for text in texts:
        await work.say(text)
    if feed is not None and hears:
        async with asyncio.timeout(5):
            while feed._last != EventId(work.claim.attempt, work.seq - 1):
                await asyncio.sleep(0)


HAPPENINGS: dict[str, int] = {"an event": 1, "several": 3, "more than a feed remembers": 7}


@pytest.mark.parametrize("happening", [*HAPPENINGS, "the end"])
@pytest.mark.parametrize("who", ["the first follower", "a second follower", "one with a cursor"])
@pytest.mark.parametrize("after", [False, True], ids=["before the answer", "after the answer"])
async def test_what_is_published_at_any_point_of_joining_is_seen_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, happening: str, who: str, after: bool
) -> None:
    """With pages of two events and a memory of five, so that every path of joining is walked."""
    monkeypatch.setattr(hub_module, "TAIL", 5)
    monkeypatch.setattr(hub_module, "read_page", partial(hub_module.read_page, count=2))
    worker = await lab.worker()
    point = points = 0
    async with Hub(lab.connections) as hub:
        while point == 0 or point < points:
            await lab.enqueue(f"0-{point}")
            work = await worker.begin()
            for n in range(3):
                await work.say(f"έ{n} ")

            async def happen(work: Work = work) -> None:
                if happening == "the end":
                    await work.finish()
                    return
                await _say(hub, work, *(f"日{n} " for n in range(HAPPENINGS[happening])))

            first, reader = Reader(), Reader()
            cursor = EventId(1, 2) if who == "one with a cursor" else None
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                if who == "a second follower":
                    group.create_task(_join(hub, work.id, None, first))
                    while not (work.id in hub.feeds and hub.feeds[work.id]._followers):
                        await asyncio.sleep(0)
                interrupted = Interrupted(_join(hub, work.id, cursor, reader), happen, point, after=after)
                joining = group.create_task(_run(interrupted))
                while not joining.done() and (interrupted.busy or not _is_live(hub, work, reader)):
                    await asyncio.sleep(0)
                interrupted.over = True
                points = max(points, interrupted.waits - 1)  # the last one is its wait for the end
                if not (interrupted.happened and happening == "the end"):
                    await work.say("live ")
                    await work.finish()
            check_whole(reader.events, None if cursor else work.text, after=cursor)
            said = "".join(event.text for event in reader.events if isinstance(event, TextDelta))
            assert said == (work.text[6:] if cursor else work.text)
            if who == "a second follower":
                check_whole(first.events, work.text)
            point += 1
    assert points >= 3


async def _run(interrupted: Interrupted) -> None:
    await interrupted


def _is_live(hub: Hub, work: Work, reader: Reader) -> bool:
    return work.id in hub.feeds and reader in hub.feeds[work.id]._followers


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxied(redis_url) as opened:
        yield opened


@pytest.mark.parametrize("place", ["on its way to Redis", "done, and its confirmation on the way"])
async def test_what_is_published_while_the_subscription_is_made_is_seen_once(
    lab: Lab, redis_url: str, proxy: Proxy, work: Work, place: str
) -> None:
    async with Connections(RedisSettings(url=proxy.url(redis_url))) as connections, Hub(connections) as hub:
        async with hub.feed("0-other"):
            pass  # the connection is there
        gate = proxy.up if place == "on its way to Redis" else proxy.down
        gate.hold()
        reader = Reader()
        joining = asyncio.create_task(_join(hub, work.id, None, reader))
        if gate is proxy.up:
            while not (work.id in hub.feeds and hub.feeds[work.id]._ready):
                await asyncio.sleep(0)
        else:
            while (await lab.redis.pubsub_numsub(K.live(work.id)))[0][1] == 0:
                await asyncio.sleep(0)
        await work.say("έ ")
        gate.flow()
        while not _is_live(hub, work, reader):
            await asyncio.sleep(0)
        await work.say("日 ")
        await work.finish()
        async with asyncio.timeout(10):
            await joining
    check_whole(reader.events, work.text)


async def _tell(lab: Lab, job_id: str, said: list[EventId], step: Callable[[], None], *, goes_on: bool) -> None:
    """A job of three attempts, the story of whose model is told event by event."""
    worker = await lab.worker()
    for attempt in range(1, 4):
        work = await worker.begin(can_continue=goes_on)
        said.append(EventId(attempt, 0))
        for number in range(40):
            step()
            await work.say(f"{number} 日本 ")
            said.append(EventId(attempt, work.seq - 1))
        if attempt < 3:
            await work.release()
    step()
    await work.finish()


def _by_attempt(events: list[Event], after: EventId | None) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        if isinstance(event, TextDelta) and event.id is not None and (after is None or event.id > after):
            texts[event.id.attempt] = texts.get(event.id.attempt, "") + event.text
    return texts


@pytest.mark.topologies("valkey", "cluster", "sentinel")
@pytest.mark.parametrize("goes_on", [False, True], ids=["attempts begin anew", "attempts go on"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_two_hundred_followers_that_join_at_random_moments_get_all_that_follows_their_cursors(
    lab: Lab, queue: AsyncQueue, seed: int, goes_on: bool
) -> None:
    chance = random.Random(seed)
    job_id = await lab.enqueue(on_takeover="continue" if goes_on else "restart", max_attempts=3)
    moments = sorted(chance.randrange(121) for _ in range(200))
    said: list[EventId] = []
    followers: list[tuple[Seen, EventId | None]] = []
    async with (
        running_relay(queue) as relay,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.timeout(40),
        asyncio.TaskGroup() as group,
    ):
        steps = iter(range(200))

        def step() -> None:
            now = next(steps)
            while moments and moments[0] == now:
                moments.pop(0)
                cursor = chance.choice([None, *said[-90:]])
                by = by_sse(http, [relay.url], job_id, cursor) if now % 2 else by_client(queue, job_id, cursor)
                seen = Seen(f"follower {len(followers)} after {cursor}, {'sse' if now % 2 else 'client'}")
                followers.append((seen, cursor))
                group.create_task(by(seen))

        await _tell(lab, job_id, said, step, goes_on=goes_on)
    assert len(followers) == 200
    log = await lab.log(job_id)
    for seen, cursor in followers:
        assert order_problems(seen.events, cursor) == [], seen.follower
        assert isinstance(seen.events[-1], Done), seen.follower
        assert _by_attempt(seen.events, None) == _by_attempt(log, cursor), seen.follower
        assert seen.resets == 0, seen.follower
