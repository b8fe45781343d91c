"""The one subscription connection: it delivers in order, notices its own death, and says when something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
import redis.asyncio
from redis.asyncio import Redis

from deltafan.broker.connections import Connections
from deltafan.broker.subscriber import Subscriber
from deltafan.devserver.proxy import Proxy, proxied
from deltafan.errors import BrokerUnavailable
from deltafan.settings import RedisSettings

PROBE = 0.05


@dataclass
class Listener:
    messages: list[bytes] = field(default_factory=list)
    gaps: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def on_message(self, data: bytes) -> None:
        self.messages.append(data)
        self.news.set()

    def on_gap(self) -> None:
        self.gaps += 1
        self.news.set()

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not check():
                self.news.clear()
                await self.news.wait()


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxied(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def direct(redis_url: str) -> AsyncIterator[Redis]:
    """A client that no fault touches."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield client


@pytest_asyncio.fixture
async def subscriber(proxy: Proxy, redis_url: str) -> AsyncIterator[Subscriber]:
    settings = RedisSettings(url=proxy.url(redis_url), probe_interval=PROBE, command_timeout=1)
    async with Connections(settings) as connections, Subscriber(connections) as opened:
        yield opened


async def _listen(subscriber: Subscriber, channel: str = "c") -> Listener:
    listener = Listener()
    await subscriber.subscribe(channel, listener.on_message, listener.on_gap)
    return listener


async def _until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await check():
            await asyncio.sleep(0.005)


async def test_whatever_is_published_after_subscribe_returned_arrives_in_order(
    subscriber: Subscriber, direct: Redis
) -> None:
    listener = await _listen(subscriber)
    for n in range(500):
        await direct.publish("c", str(n))
    await listener.until(lambda: len(listener.messages) == 500)
    assert listener.messages == [str(n).encode() for n in range(500)]
    assert listener.gaps == 0


async def test_any_number_of_channels_share_one_connection(subscriber: Subscriber, direct: Redis, proxy: Proxy) -> None:
    listeners = await asyncio.gather(*(_listen(subscriber, f"c{n}") for n in range(200)))
    for n in range(200):
        assert await direct.publish(f"c{n}", str(n)) == 1
    for n, listener in enumerate(listeners):
        await listener.until(lambda listener=listener: bool(listener.messages))  # type: ignore[misc]
        assert listener.messages == [str(n).encode()]
    assert proxy.accepted == 1


async def test_a_killed_connection_is_replaced_and_the_gap_told_once_a_channel(
    subscriber: Subscriber, direct: Redis
) -> None:
    one, other = await _listen(subscriber, "one"), await _listen(subscriber, "other")
    for round_trip in range(1, 4):
        assert await direct.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        for name, listener in (("one", one), ("other", other)):
            await listener.until(lambda listener=listener: listener.gaps == round_trip)  # type: ignore[misc]  # noqa: B023
            assert await direct.publish(name, "after") == 1
            await listener.until(lambda listener=listener: len(listener.messages) == round_trip)  # type: ignore[misc]  # noqa: B023
    assert (one.gaps, other.gaps) == (3, 3)


async def test_a_half_open_connection_is_found_by_its_silence(
    subscriber: Subscriber, direct: Redis, proxy: Proxy
) -> None:
    listener = await _listen(subscriber)
    proxy.silence()
    await direct.publish("c", "lost")
    await listener.until(lambda: listener.gaps == 1)
    assert (subscriber.reconnects, listener.messages) == (1, [])
    await direct.publish("c", "found")
    await listener.until(lambda: listener.messages == [b"found"])


async def test_silence_is_found_within_two_probe_intervals(subscriber: Subscriber, proxy: Proxy, direct: Redis) -> None:
    """Counted in what the subscriber does, not in time: one unanswered PING is enough."""
    listener = await _listen(subscriber)
    pings: list[bytes] = []

    def watch(data: bytes) -> bool:
        pings.extend([data] if b"PING" in data else [])
        return False

    proxy.cut_after_request(watch)
    proxy.down.hold()
    async with asyncio.timeout(5):
        while subscriber.reconnects == 0:
            await asyncio.sleep(0.005)
    assert len(pings) == 1
    proxy.down.flow()
    await listener.until(lambda: listener.gaps == 1)


async def test_a_quiet_connection_that_answers_is_kept(subscriber: Subscriber, direct: Redis, proxy: Proxy) -> None:
    listener = await _listen(subscriber)

    async def probed() -> bool:
        return int((await direct.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"]) >= 4

    await _until(probed)
    assert (subscriber.reconnects, listener.gaps, proxy.accepted) == (0, 0, 1)


async def test_an_outage_is_waited_out(subscriber: Subscriber, direct: Redis, proxy: Proxy) -> None:
    listener = await _listen(subscriber)
    proxy.go_away()

    async def tried() -> bool:
        return subscriber.reconnects >= 3

    await _until(tried)
    proxy.come_back()
    await listener.until(lambda: listener.gaps == 1)
    await direct.publish("c", "again")
    await listener.until(lambda: listener.messages == [b"again"])


async def test_a_subscription_that_redis_never_confirms_fails_and_is_forgotten(redis_url: str, proxy: Proxy) -> None:
    settings = RedisSettings(url=proxy.url(redis_url), probe_interval=60, command_timeout=0.5)
    async with Connections(settings) as connections, Subscriber(connections) as subscriber:
        await _listen(subscriber, "first")
        proxy.up.swallows = True
        with pytest.raises(BrokerUnavailable, match="not confirmed"):
            await _listen(subscriber)
        assert subscriber._channels.keys() == {b"first"}


async def test_a_channel_that_was_left_and_taken_again_has_its_new_listener_alone(
    subscriber: Subscriber, direct: Redis
) -> None:
    first = await _listen(subscriber)
    await subscriber.unsubscribe("c")
    second = await _listen(subscriber)
    await direct.publish("c", "x")
    await second.until(lambda: bool(second.messages))
    assert (first.messages, second.messages, second.gaps) == ([], [b"x"], 0)
    await subscriber.unsubscribe("c")

    async def left() -> bool:
        return await direct.publish("c", "y") == 0

    await _until(left)
    assert all(line.awaited == {} for line in subscriber._lines.values())


async def test_subscribing_while_redis_is_away_succeeds_when_it_is_back(
    subscriber: Subscriber, direct: Redis, proxy: Proxy
) -> None:
    await _listen(subscriber, "first")
    proxy.go_away()
    listening = asyncio.create_task(_listen(subscriber))
    await asyncio.sleep(0.02)
    proxy.come_back()
    listener = await listening
    assert listener.gaps == 0
    await direct.publish("c", "x")
    await listener.until(lambda: bool(listener.messages))


async def test_callers_that_are_cancelled_at_any_moment_do_not_break_the_connection_of_all(
    subscriber: Subscriber, direct: Redis, proxy: Proxy
) -> None:
    listener = await _listen(subscriber)
    for steps in range(12):
        callers = [asyncio.create_task(_listen(subscriber, f"{steps}-{number}")) for number in range(5)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        leaving = [asyncio.create_task(subscriber.unsubscribe(f"{steps}-{number}")) for number in range(5)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*callers, *leaving, return_exceptions=True)
        assert await direct.publish("c", str(steps)) == 1
        await listener.until(lambda steps=steps: listener.messages[-1:] == [str(steps).encode()])  # type: ignore[misc]
    assert (subscriber.reconnects, listener.gaps, proxy.accepted) == (0, 0, 1)
