"""Every store of caches keeps the contract of `Cache`, against the real thing: a folder, Valkey, PostgreSQL, Qdrant."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.devserver.provider import Provider
from deltafan.events import Done, Event, TextDelta, Usage
from deltafan.llm import Request, Started
from deltafan.llm.cache import Cache, Cached, CacheError, CorruptEntry
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.cache.pg_redis import PgRedisCache
from deltafan.llm.cache.postgres import PostgresCache
from deltafan.llm.cache.qdrant import QdrantCache
from deltafan.llm.cache.redis import RedisCache
from deltafan.telemetry.hooks import Signal
from tests.conftest import completions_of
from tests.contract.cache_kit import FsStore, PgRedisStore, QdrantStore, RedisStore, Store, running_postgres


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[str]:
    async with running_postgres() as url:
        yield url


@pytest_asyncio.fixture
async def postgres_url(postgres_server: str) -> str:
    """The URL of a database without our table."""
    connection = await asyncpg.connect(postgres_server)
    await connection.execute("DROP TABLE IF EXISTS deltafan_cache")
    await connection.close()
    return postgres_server


@pytest_asyncio.fixture(params=["fs", "redis", "pg_redis", "qdrant"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str, postgres_url: str
) -> AsyncIterator[Store]:
    made: Store
    match request.param:
        case "fs":
            made = FsStore(tmp_path)
        case "redis":
            made = RedisStore(redis_url)
        case "pg_redis":
            made = PgRedisStore(postgres_url, redis_url)
        case _:
            made = QdrantStore()
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def cache(store: Store) -> AsyncIterator[Cache]:
    opened = store.open()
    yield opened
    await opened.aclose()


def key(name: str = "one") -> str:
    return hashlib.sha256(name.encode()).hexdigest()


async def gone(cache: Cache, name: str) -> None:
    async with asyncio.timeout(20):
        while await cache.get(key(name)) is not None:
            await asyncio.sleep(0.01)


async def test_nothing_is_under_a_key_at_first(cache: Cache) -> None:
    assert await cache.get(key()) is None


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        orjson.dumps({"text": "Grüße, 世界 👋 \u2028 \x00 \x7f", "big": 2**63, "small": 1e-300}),
        b'{ "spaces" : [ 1.0 , "\\u00e9" ] }',
        orjson.dumps({"text": "ab" * 1_000_000}),
    ],
    ids=["empty", "unicode", "spaced", "2 MB"],
)
async def test_a_value_comes_back_byte_for_byte(cache: Cache, value: bytes) -> None:
    await cache.set(key(), value)
    assert await cache.get(key()) == value


async def test_another_cache_over_the_same_store_finds_it(store: Store, cache: Cache) -> None:
    await cache.set(key(), b'{"n":1}')
    other = store.open()
    assert await other.get(key()) == b'{"n":1}'
    await other.aclose()
    assert await cache.get(key()) == b'{"n":1}', "closing one leaves the other open"


async def test_a_later_value_replaces_an_earlier_one_and_leaves_other_keys_alone(cache: Cache) -> None:
    await cache.set(key("one"), b'{"n":1}')
    await cache.set(key("two"), b'{"n":2}')
    await cache.set(key("one"), b'{"n":3}')
    assert [await cache.get(key("one")), await cache.get(key("two"))] == [b'{"n":3}', b'{"n":2}']


async def test_what_is_deleted_is_gone_and_deleting_nothing_is_no_error(cache: Cache) -> None:
    await cache.set(key(), b"{}")
    await cache.delete(key())
    await cache.delete(key())
    assert await cache.get(key()) is None


async def test_an_entry_is_gone_when_its_time_is_over(cache: Cache) -> None:
    await cache.set(key("short"), b"{}", ttl=0.05)
    await cache.set(key("long"), b"{}", ttl=3600)
    await gone(cache, "short")
    assert await cache.get(key("long")) == b"{}"


async def test_a_new_value_has_a_time_of_its_own(cache: Cache) -> None:
    await cache.set(key("old"), b"{}", ttl=0.3)
    await cache.set(key("new"), b'{"n":1}', ttl=0.3)
    await cache.set(key("new"), b'{"n":2}')
    await gone(cache, "old")
    assert await cache.get(key("new")) == b'{"n":2}'


async def test_concurrent_first_users_do_not_disturb_each_other(store: Store) -> None:
    caches = [store.open() for _ in range(12)]
    await asyncio.gather(*(cache.set(key(str(n)), b'{"n":%d}' % n) for n, cache in enumerate(caches)))
    found = await asyncio.gather(*(caches[0].get(key(str(n))) for n in range(12)))
    assert found == [b'{"n":%d}' % n for n in range(12)]
    await asyncio.gather(*(cache.aclose() for cache in caches))


async def test_concurrent_writers_of_one_key_leave_one_whole_value(cache: Cache) -> None:
    values = [orjson.dumps({"n": n, "text": str(n) * 5000}) for n in range(20)]
    await asyncio.gather(*(cache.set(key(), value) for value in values))
    assert await cache.get(key()) in values


async def test_a_cancelled_call_leaves_the_cache_usable(cache: Cache) -> None:
    for _ in range(5):
        task = asyncio.create_task(cache.set(key(), b"{}"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await cache.set(key("after"), b'{"n":1}')
    assert await cache.get(key("after")) == b'{"n":1}'


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
async def test_what_is_no_key_is_refused(cache: Cache, bad: str) -> None:
    for call in (cache.get(bad), cache.set(bad, b"{}"), cache.delete(bad)):
        with pytest.raises(CacheError, match="64 lower-case hexadecimal"):
            await call


async def test_a_spoiled_entry_is_never_given_out_whole_and_can_be_replaced(store: Store, cache: Cache) -> None:
    value = orjson.dumps({"text": "x" * 1000})
    await cache.set(key(), value)
    await store.spoil(key())
    with suppress(CorruptEntry):  # a store that cannot tell gives what it has; the ring finds out
        assert await cache.get(key()) != value
    await cache.set(key(), value)
    assert await cache.get(key()) == value


async def test_closing_twice_is_allowed(store: Store) -> None:
    cache = store.open()
    await cache.set(key(), b"{}")
    await cache.aclose()
    await cache.aclose()


async def test_closing_what_was_never_used_opens_nothing(store: Store) -> None:
    await store.open().aclose()


async def test_prune_removes_what_has_expired_and_nothing_else(store: Store, cache: Cache) -> None:
    target = PostgresCache(store.postgres) if isinstance(store, PgRedisStore) else cache
    if isinstance(target, RedisCache):  # it expires by itself
        await target.set(key("short"), b"{}", ttl=0.01)
        await target.set(key("long"), b"{}", ttl=3600)
        await gone(target, "short")
        assert await target.get(key("long")) == b"{}"
        return
    assert isinstance(target, FsCache | PostgresCache | QdrantCache)
    first = store.open()
    await first.set(key("first"), b"{}")
    await first.aclose()  # with the prune that a folder's first write begins
    await target.set(key("short"), b"{}", ttl=0.01)
    await target.set(key("long"), b"{}", ttl=3600)
    await target.set(key("for ever"), b"{}")
    await gone(target, "short")
    assert await target.prune() in (1, None)
    assert [await target.get(key("long")), await target.get(key("for ever"))] == [b"{}", b"{}"]
    await target.aclose()


# Under the ring, with a provider over HTTP


async def test_a_real_answer_is_asked_for_once_stored_and_mended(store: Store, provider: Provider) -> None:
    signals: list[Signal] = []
    request = Request(model="gpt-5-mini", messages=[{"role": "user", "content": "Grüße 世界 👋"}])
    async with completions_of(provider) as (completions, settings):
        for spoil in (False, True):
            cache = store.open()
            async with Cached(completions, cache, settings=settings, hook=signals.append) as ring:
                if spoil:
                    await store.spoil(signals[0].fields["key"])
                first, second = await collect(ring, request), await collect(ring, request)
            await cache.aclose()
            assert (started(first).cached, started(second).cached) == (False, True)
            assert text(first) == text(second) != ""
            usages = [next(event for event in events if isinstance(event, Usage)) for events in (first, second)]
            assert replace(usages[0], cost_usd=0.0) == usages[1]
            assert first[-1] == second[-1] == Done("stop")
    assert [signal.name for signal in signals if signal.level == "warning"] == ["cache.corrupt"]


async def collect(ring: Cached, request: Request) -> list[Event]:
    async with aclosing(ring.stream(request)) as events:
        return [event async for event in events]


def started(events: list[Event]) -> Started:
    return next((event for event in events if isinstance(event, Started)), Started())


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("url", ["redis", "postgresql"])
async def test_a_server_that_never_answers_costs_a_warning_and_not_the_request(url: str, provider: Provider) -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    signals: list[Signal] = []
    request = Request(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        where = f"{url}://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        cache: Cache = RedisCache(where) if url == "redis" else PostgresCache(where)
        async with (
            completions_of(provider) as (completions, settings),
            Cached(completions, cache, settings=settings, timeout=0.05, hook=signals.append) as ring,
        ):
            for _ in range(3):
                assert text(await collect(ring, request))
        await cache.aclose()
    assert connected.is_set()
    assert [signal.name for signal in signals if signal.level == "warning"] == ["cache.unavailable"]


# PostgreSQL with Redis before it


async def test_postgres_serves_alone_while_redis_is_down(postgres_url: str) -> None:
    signals: list[Signal] = []
    nowhere = RedisCache("redis://127.0.0.1:1/0")
    cache = PgRedisCache(PostgresCache(postgres_url), nowhere, hook=signals.append)
    await cache.set(key(), b'{"n":1}')
    assert await cache.get(key()) == b'{"n":1}'
    await cache.delete(key())
    assert await cache.get(key()) is None
    assert [signal.name for signal in signals] == ["cache.unavailable"], "one warning an outage"
    await cache.aclose()


async def test_what_was_read_is_hot_for_a_while_and_never_longer_than_it_lives(
    postgres_url: str, redis_url: str
) -> None:
    cache = PgRedisCache(PostgresCache(postgres_url), RedisCache(redis_url), hot_ttl=100)
    async with Redis.from_url(redis_url) as redis:
        for name, ttl, bound in (("brief", 10.0, 10), ("long", 1000.0, 100), ("for ever", None, 100)):
            await cache.set(key(name), b"{}", ttl=ttl)
            assert 0 < await redis.ttl(f"deltafan:cache:{key(name)}") <= bound
            await redis.flushall()
            assert await cache.get(key(name)) == b"{}"
            assert 0 < await redis.ttl(f"deltafan:cache:{key(name)}") <= bound, "read from PostgreSQL, hot again"
    await cache.aclose()


async def test_what_is_hot_is_not_replaced_by_what_was_read_before(postgres_url: str, redis_url: str) -> None:
    hot = RedisCache(redis_url)
    await hot.set(key(), b'{"n":2}')
    await hot.add(key(), b'{"n":1}', ttl=10)
    assert await hot.get(key()) == b'{"n":2}'
    await hot.aclose()


async def test_values_are_compressed_and_those_that_are_not_can_be_read(postgres_url: str) -> None:
    value = orjson.dumps({"text": "abc " * 10_000})
    packing, plain = PostgresCache(postgres_url), PostgresCache(postgres_url, compression="none")
    await packing.set(key("packed"), value)
    await plain.set(key("plain"), value)
    assert [await plain.get(key("packed")), await packing.get(key("plain"))] == [value, value]
    connection = await asyncpg.connect(postgres_url)
    sizes = dict(await connection.fetch("SELECT codec, length(value) FROM deltafan_cache"))
    await connection.close()
    assert sizes["none"] == len(value)
    assert sizes["zlib"] < len(value) / 20
    for cache in (packing, plain):
        await cache.aclose()


async def test_a_table_of_another_form_is_refused_and_left_alone(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE deltafan_cache (somebody text)")
    cache = PostgresCache(postgres_url)
    with pytest.raises(CacheError, match="not of this version's form"):
        await cache.get(key())
    await cache.aclose()
    assert await connection.fetchval("SELECT count(*) FROM deltafan_cache") == 0
    await connection.execute("DROP TABLE deltafan_cache")
    await connection.close()


async def test_a_pool_that_was_given_stays_open(postgres_url: str) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as pool:
        cache = PostgresCache(pool)
        await cache.set(key(), b"{}")
        await cache.aclose()
        assert await pool.fetchval("SELECT count(*) FROM deltafan_cache") == 1


async def test_a_failed_start_is_tried_again(postgres_server: str, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE deltafan_cache (somebody text)")
    cache = PostgresCache(postgres_url)
    with pytest.raises(CacheError):
        await cache.set(key(), b"{}")
    await connection.execute("DROP TABLE deltafan_cache")
    await cache.set(key(), b"{}")
    assert await cache.get(key()) == b"{}"
    await cache.aclose()
    await connection.close()


# Qdrant in a folder


async def test_qdrants_folder_outlives_the_process(tmp_path: Path) -> None:
    for expected in (None, b'{"n":1}'):
        cache = QdrantCache(str(tmp_path / "qdrant"))
        assert await cache.get(key()) == expected
        await cache.set(key(), b'{"n":1}')
        await cache.aclose()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RedisCache("redis://127.0.0.1:1/0"),
        lambda: PostgresCache("postgresql://nobody@127.0.0.1:1/none"),
        lambda: QdrantCache("http://127.0.0.1:1"),
    ],
    ids=["redis", "postgres", "qdrant"],
)
async def test_a_server_that_is_not_there_is_a_cache_error(make: Callable[[], Cache]) -> None:
    cache = make()
    with pytest.raises(CacheError):
        await cache.get(key())
    await cache.aclose()
