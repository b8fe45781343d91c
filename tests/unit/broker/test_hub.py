"""Followers miss nothing, see nothing twice, whatever the subscription goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import orjson
import pytest
import pytest_asyncio

from deltafan.broker import hub as hub_module
from deltafan.broker.connections import Connections
from deltafan.broker.hub import Feed, Hub
from deltafan.broker.log import Entry
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.events import Event, EventId, TextDelta
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import K, Lab, Work
from tests.oracle import check_order, check_whole


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxied(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def lab(redis_url: str) -> AsyncIterator[Lab]:
    """The worker's side, which no fault touches."""
    async with Connections(RedisSettings(url=redis_url)) as connections:
        yield Lab(connections)


@pytest_asyncio.fixture
async def queue(proxy: Proxy, redis_url: str) -> AsyncIterator[AsyncQueue]:
    """The follower's side, behind the proxy."""
    settings = RedisSettings(url=proxy.url(redis_url), probe_interval=0.05, command_timeout=1)
    async with AsyncQueue(settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def work(lab: Lab) -> Work:
    worker = await lab.worker()
    await lab.enqueue()
    return await worker.begin()


class Follower:
    """Follows a job in a task, and lets the test wait for what it has seen."""

    def __init__(self, queue: AsyncQueue, job_id: str, after: EventId | None = None) -> None:
        self.events: list[Event] = []
        self.after = after
        self._news = asyncio.Event()
        self._events = queue.job(job_id).events(after)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for event in self._events:
            self.events.append(event)
            self._news.set()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not check():
                self._news.clear()
                await self._news.wait()

    async def has(self, text: str) -> None:
        await self.until(lambda: self.text.endswith(text))

    async def end(self) -> None:
        async with asyncio.timeout(5):
            await self.task


async def _joined(queue: AsyncQueue, work: Work) -> Follower:
    """A follower that is live."""
    follower = Follower(queue, work.id)
    await work.say("begin ")
    await follower.has("begin ")
    return follower


async def test_a_subscription_that_is_killed_again_and_again_costs_no_event(
    lab: Lab, queue: AsyncQueue, work: Work
) -> None:
    follower = await _joined(queue, work)
    for n in range(30):
        if n % 6 == 0:
            await lab.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await work.say(f"{n} ")
    await follower.has("29 ")
    await work.finish()
    await follower.end()
    check_whole(follower.events, work.text)
    assert (await queue.hub()).subscriber.reconnects >= 1


async def test_a_half_open_subscription_costs_no_event(proxy: Proxy, queue: AsyncQueue, work: Work) -> None:
    follower = await _joined(queue, work)
    proxy.silence()
    await work.say("unheard ")
    await follower.has("unheard ")
    await work.say("heard ")
    await work.finish()
    await follower.end()
    check_whole(follower.events, work.text)


async def test_an_outage_for_the_follower_alone_costs_no_event(proxy: Proxy, queue: AsyncQueue, work: Work) -> None:
    follower = await _joined(queue, work)
    proxy.go_away()
    await work.say("unheard ")
    await work.finish()
    proxy.come_back()
    await follower.end()
    check_whole(follower.events, work.text)


async def test_followers_that_join_in_an_outage_wait_for_its_end(proxy: Proxy, queue: AsyncQueue, work: Work) -> None:
    first = await _joined(queue, work)
    proxy.cut()
    others = [Follower(queue, work.id) for _ in range(20)]
    await work.say("more ")
    await work.finish()
    for follower in (first, *others):
        await asyncio.wait({follower.task}, timeout=5)
    check_whole(first.events, work.text)
    for follower in others:
        if not follower.events:  # the very first question of a follower is not asked again: its caller is told
            assert "cannot be reached" in str(follower.task.exception())
        else:
            check_whole(follower.events, work.text)


async def test_a_message_that_was_lost_without_a_trace_is_read_from_the_log(
    lab: Lab, queue: AsyncQueue, work: Work
) -> None:
    follower = await _joined(queue, work)
    # In the log and in the record, and never published.
    work.text += "unheard "
    await lab.redis.xadd(K.log(work.id), {"e": work.encoded(work.seq, TextDelta("unheard "))[0]}, id=f"1-{work.seq}")
    await lab.redis.hset(K.job(work.id), "seq", work.seq)
    work.seq += 1
    await work.say("heard ")
    await follower.has("heard ")
    await work.finish()
    await follower.end()
    check_whole(follower.events, work.text)


async def _hears_what_was_not_published(lab: Lab, follower: Follower, work: Work) -> None:
    data = work.encoded(work.seq, TextDelta("unheard "))[0]
    await lab.redis.xadd(K.log(work.id), {"e": data}, id=f"1-{work.seq}")
    await lab.redis.hset(K.job(work.id), "seq", work.seq)
    await follower.has("unheard ")
    follower.task.cancel()
    await asyncio.gather(follower.task, return_exceptions=True)


async def test_a_lost_last_message_is_found_by_the_audit(
    lab: Lab, queue: AsyncQueue, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "AUDIT_INTERVAL", 0.05)
    follower = await _joined(queue, work)
    await _hears_what_was_not_published(lab, follower, work)
    check_order(follower.events)


@pytest.mark.parametrize("field", [None, "created"], ids=["it is no hash", "it holds no number"])
async def test_a_record_that_another_program_overwrote_costs_no_other_job_its_audit(
    lab: Lab, queue: AsyncQueue, work: Work, monkeypatch: pytest.MonkeyPatch, field: str | None
) -> None:
    monkeypatch.setattr(hub_module, "AUDIT_INTERVAL", 0.05)
    hub = await queue.hub()
    await lab.enqueue(job_id="0-broken")
    async with hub.feed("0-broken"):
        if field is None:
            await lab.redis.set(K.job("0-broken"), "x")
        else:
            await lab.redis.hset(K.job("0-broken"), field, "x")
        follower = await _joined(queue, work)
        await _hears_what_was_not_published(lab, follower, work)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"{}",
        b'{"id":"1-2"}',
        b'{"v":1,"job":"0-other","id":"1-2","type":"text_delta","text":"foreign "}',
        b'{"v":1,"job":"0-other","id":"9-0","type":"meta"}',
        b'{"id":"9-0","type":"done"}',
        b'{"id":"99999999999999999999-1","type":"done"}',
    ],
)
async def test_what_a_stranger_publishes_on_the_live_channel_is_ignored(
    lab: Lab, queue: AsyncQueue, work: Work, garbage: bytes
) -> None:
    follower = await _joined(queue, work)
    assert await lab.redis.publish(K.live(work.id), garbage) == 1
    await work.say("heard ")
    await work.finish()
    await follower.end()
    check_whole(follower.events, work.text)


async def test_an_event_that_is_published_twice_is_seen_once(lab: Lab, queue: AsyncQueue, work: Work) -> None:
    follower = await _joined(queue, work)
    for _, fields in await lab.redis.xrange(K.log(work.id)):
        await lab.redis.publish(K.live(work.id), fields[b"e"])
    await work.say("more ")
    await work.finish()
    await follower.end()
    check_whole(follower.events, work.text)


async def test_any_number_of_feeds_and_followers_share_one_subscription(lab: Lab, queue: AsyncQueue) -> None:
    worker = await lab.worker()
    works = []
    for n in range(40):
        await lab.enqueue(f"0-{n}")
        works.append(await worker.begin())
    followers = [Follower(queue, work.id) for work in works for _ in range(3)]
    for work in works:
        await work.say("hello ")
    for follower in followers:
        await follower.has("hello ")
    subscribers = [c for c in await lab.redis.client_list() if int(c["sub"]) > 0]
    assert [client["sub"] for client in subscribers] == ["40"]
    for work in works:
        await work.finish()
    for follower in followers:
        await follower.end()
        check_whole(follower.events, "hello ")
    assert (await queue.hub()).feeds == {}


@dataclass(eq=False)
class Reader:
    """A hub's follower by hand: what the replay brought, and what came live."""

    replayed: list[Entry] = field(default_factory=list)
    lived: list[Entry] = field(default_factory=list)
    meanwhile: Callable[[], object] | None = None

    def live(self, entry: Entry) -> None:
        self.lived.append(entry)

    def gone(self) -> None:
        raise AssertionError("the job is there")

    async def replay(self, entries: list[Entry]) -> None:
        self.replayed += entries
        if self.meanwhile is not None:
            happening, self.meanwhile = self.meanwhile, None
            await happening()  # type: ignore[misc]

    def events(self) -> list[Event]:
        return [event for entry in (*self.replayed, *self.lived) if (event := entry.event()) is not None]


@pytest_asyncio.fixture
async def hub(lab: Lab) -> AsyncIterator[Hub]:
    async with Hub(lab.connections) as opened:
        yield opened


async def _dispatched(feed: Feed, seq: int) -> None:
    async with asyncio.timeout(5):
        while feed._last is None or feed._last < EventId(1, seq):
            await asyncio.sleep(0)


async def test_what_is_published_between_subscribing_and_reading_is_seen_once(hub: Hub, work: Work) -> None:
    """The first follower's case: nothing had gone live before."""
    reader = Reader()
    async with hub.feed(work.id) as feed:
        await work.say("early ")
        await _dispatched(feed, 1)
        await feed.join(None, reader.replay, reader)
        await work.say("late ")
        await _dispatched(feed, 2)
    assert "".join(e.text for e in check_order(reader.events()) if isinstance(e, TextDelta)) == "early late "


@pytest.mark.parametrize("many", [1, 5, hub_module.TAIL + 50])
async def test_what_is_published_while_the_log_is_read_is_seen_once(hub: Hub, work: Work, many: int) -> None:
    """Also where more comes than a feed remembers: the log is read again."""

    async def meanwhile() -> None:
        await work.append(*(f"{n} " for n in range(many)), first=work.seq)
        await _dispatched(feed, work.seq + many - 1)
        work.seq += many

    first, reader = Reader(), Reader(meanwhile=meanwhile)
    async with hub.feed(work.id) as feed:
        await feed.join(None, first.replay, first)
        await work.say("begin ")
        await feed.join(None, reader.replay, reader)
        await work.say("end ")
        await _dispatched(feed, work.seq - 1)
    expected = "begin " + "".join(f"{n} " for n in range(many)) + "end "
    for each in (first, reader):
        assert "".join(e.text for e in check_order(each.events()) if isinstance(e, TextDelta)) == expected


async def test_who_read_further_than_the_subscription_is_not_told_again(hub: Hub, lab: Lab, work: Work) -> None:
    """The log was faster: the event's message arrives after the follower has read it."""
    first, second = Reader(), Reader()
    async with hub.feed(work.id) as feed:
        await work.say("begin ")
        await _dispatched(feed, 1)
        await feed.join(None, first.replay, first)
        data = work.encoded(work.seq, TextDelta("late "))[0]
        await lab.redis.xadd(K.log(work.id), {"e": data}, id=f"1-{work.seq}")
        await feed.join(None, second.replay, second)
        await lab.redis.publish(K.live(work.id), data)
        await _dispatched(feed, work.seq)
    for reader in (first, second):
        assert "".join(e.text for e in check_order(reader.events()) if isinstance(e, TextDelta)) == "begin late "


async def test_who_has_ended_is_not_kept(hub: Hub, work: Work) -> None:
    await work.say("x")
    await work.finish()
    reader = Reader()
    async with hub.feed(work.id) as feed:
        await feed.join(None, reader.replay, reader)
        assert feed._followers == {}
    check_whole(reader.events(), "x")
    assert orjson.loads(reader.replayed[-1].data)["type"] == "done"
    assert hub.feeds == {}
