"""What only a limit in Redis has to withstand: processes that die, lost replies, a server that is away."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from deltafan.devserver.proxy import Proxy, proxied
from deltafan.errors import CompletionError
from deltafan.llm.limits import Allowance, Budget, Limiter, Observation, TokenBucket
from deltafan.llm.limits import shared as shared_module
from deltafan.llm.limits.budget import Amount, Granted, Waiting
from deltafan.llm.limits.shared import RedisStore, in_redis
from tests.contract.limits_kit import Grant, Lab, check_windows

NAME = "openai/gpt-5 k"
MINUTE = Budget(requests=10, tokens=1000)


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with proxied(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture
async def far(proxy: Proxy, redis_url: str) -> AsyncIterator[Redis]:
    """A client behind the proxy, which does not retry by itself."""
    retry = Retry(NoBackoff(), 0)
    async with Redis.from_url(proxy.url(redis_url), socket_timeout=1.0, retry=retry) as opened:
        yield opened


def granted(answer: object) -> Granted:
    assert isinstance(answer, Granted), answer
    return answer


def waits(answer: object) -> Waiting:
    assert isinstance(answer, Waiting), answer
    return answer


async def test_several_processes_share_one_budget_and_none_starves(client: Redis) -> None:
    budget = Budget(requests=20, tokens=1000, window=0.2)
    lab = Lab(lambda budget: RedisStore(client, NAME, budget))
    buckets = [lab.bucket(budget) for _ in range(3)]

    async def work(bucket: TokenBucket, tokens: int) -> None:
        async with bucket.limit(tokens) as slot:
            slot.settle(tokens // 2)

    async with asyncio.timeout(30):
        await asyncio.gather(*(work(buckets[n % 3], 1000 if n % 10 == 0 else 100) for n in range(45)))
    assert len(lab.grants) == 45
    check_windows(lab.grants, budget)


_WORKER = """
import asyncio, json, random, sys
from redis.asyncio import Redis
from deltafan.llm.limits import Budget, TokenBucket
from deltafan.llm.limits.budget import Granted
from deltafan.llm.limits import shared
from deltafan.llm.limits.shared import RedisStore

shared.LEASE = 0.5

class Telling(RedisStore):
    async def take(self, ticket, need):
        answer = await super().take(ticket, need)
        if isinstance(answer, Granted):
            print(json.dumps([answer.at, ticket, need.tokens, need.requests]), flush=True)
        return answer

async def main(url, seed):
    dice = random.Random(seed)
    budget = Budget(requests=30, tokens=1000, window=0.1)
    async with Redis.from_url(url) as client:
        bucket = TokenBucket(budget, store=Telling(client, "m", budget))
        async def work():
            while True:
                async with bucket.limit(dice.choice([10, 50, 300, 1000])):
                    await asyncio.sleep(dice.random() * 0.01)
        await asyncio.gather(*(work() for _ in range(4)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_a_process_that_is_killed_neither_overdraws_the_budget_nor_blocks_the_others(
    redis_url: str, client: Redis
) -> None:
    budget = Budget(requests=30, tokens=1000, window=0.1)
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WORKER, redis_url, str(seed), stdout=asyncio.subprocess.PIPE
        )
        for seed in range(2)
    ]
    grants: list[Grant] = []

    async def read(worker: asyncio.subprocess.Process, count: int) -> None:
        assert worker.stdout is not None
        for _ in range(count):
            at, ticket, tokens, requests = json.loads(await worker.stdout.readline())
            grants.append(Grant(at, ticket, Amount(tokens, requests)))

    try:
        async with asyncio.timeout(50):
            await asyncio.gather(*(read(worker, 15) for worker in workers))
            workers[0].send_signal(signal.SIGKILL)
            await workers[0].wait()
            assert workers[0].stdout is not None
            left = (await workers[0].stdout.read()).splitlines()
            await read(workers[1], 15)
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()
    for line in left:
        at, ticket, tokens, requests = json.loads(line)
        grants.append(Grant(at, ticket, Amount(tokens, requests)))
    check_windows(grants, budget)


async def test_a_place_in_the_queue_lapses_when_nobody_asks(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "LEASE", 0.2)
    dead, alive = (RedisStore(client, NAME, MINUTE) for _ in range(2))
    granted(await alive.take("a", Amount(100, 1)))
    waits(await dead.take("b", Amount(1000, 1)))
    bucket = TokenBucket(MINUTE, store=alive)
    async with asyncio.timeout(10), bucket.limit(100) as slot:
        assert slot.waited > 0
    await alive.aclose()


async def test_a_place_in_the_queue_is_kept_for_who_asks_again(client: Redis) -> None:
    first, second = (RedisStore(client, NAME, MINUTE) for _ in range(2))
    granted(await first.take("a", Amount(1000, 1)))
    waits(await first.take("b", Amount(1000, 1)))
    for _ in range(3):
        assert waits(await second.take("c", Amount(1, 1))).state.ahead == 1
        assert waits(await first.take("b", Amount(1000, 1))).state.ahead == 0


async def test_those_behind_one_who_has_yet_to_come_for_its_budget_ask_in_moderation(client: Redis) -> None:
    first, second = (RedisStore(client, NAME, MINUTE) for _ in range(2))
    held = granted(await first.take("a", Amount(1000, 1)))
    waits(await first.take("b", Amount(10, 1)))
    assert waits(await second.take("c", Amount(10, 1))).again == shared_module.ASK_AGAIN
    await first.settle(held, Amount(1000), 0)
    assert waits(await second.take("c", Amount(10, 1))).again == shared_module.NOT_BEFORE
    granted(await first.take("b", Amount(10, 1)))
    granted(await second.take("c", Amount(10, 1)))


async def test_one_who_is_cancelled_while_redis_answers_has_taken_nothing(
    proxy: Proxy, far: Redis, client: Redis
) -> None:
    store = RedisStore(far, NAME, MINUTE)
    await client.script_load(shared_module._SCRIPT)
    await far.ping()
    proxy.down.hold()
    call = asyncio.create_task(store.take("a", Amount(1000, 10)))
    async with asyncio.timeout(10):
        while await client.dbsize() == 0:
            await asyncio.sleep(0.002)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    proxy.down.flow()
    await store.aclose()
    granted(await store.take("b", Amount(1000, 10)))


async def test_one_who_is_cancelled_while_it_gives_back_has_given_back(proxy: Proxy, far: Redis) -> None:
    store = RedisStore(far, NAME, MINUTE)
    held = granted(await store.take("a", Amount(1000, 10)))
    proxy.up.hold()
    call = asyncio.create_task(store.settle(held, Amount(1000, 10), 0))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    proxy.up.flow()
    await store.aclose()
    granted(await store.take("b", Amount(1000, 10)))


async def test_a_redis_that_is_away_fails_the_request_and_leaves_the_budget_whole(proxy: Proxy, far: Redis) -> None:
    bucket = TokenBucket(MINUTE, store=RedisStore(far, NAME, MINUTE))
    proxy.go_away()
    with pytest.raises(CompletionError) as caught:
        async with bucket.limit(1000):
            pytest.fail("nobody can know whether there is budget")
    assert (caught.value.code, caught.value.retryable) == ("connection", True)
    proxy.come_back()
    async with asyncio.timeout(10), bucket.limit(1000):
        pass
    assert bucket.statistics().open == bucket.statistics().waiting == 0
    await bucket.aclose()


async def test_a_reply_that_is_lost_costs_its_budget_for_a_window_and_no_longer(
    proxy: Proxy, far: Redis, client: Redis
) -> None:
    budget = Budget(tokens=100, window=0.3)
    store = RedisStore(far, NAME, budget)
    await client.script_load(shared_module._SCRIPT)
    proxy.cut_after_request(lambda data: b"EVALSHA" in data)
    with pytest.raises(CompletionError):
        await store.take("a", Amount(100))
    assert await client.dbsize() == 1, "it was granted"
    async with asyncio.timeout(10), TokenBucket(budget, store=store).limit(100):
        pass


async def test_redis_may_lose_its_scripts(client: Redis) -> None:
    store = RedisStore(client, NAME, MINUTE)
    granted(await store.take("a", Amount(1, 1)))
    await client.script_flush()
    granted(await store.take("b", Amount(1, 1)))


async def test_a_client_that_decodes_will_do(redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as decoding:
        store = RedisStore(decoding, NAME, MINUTE)
        held = granted(await store.take("a", Amount(1000, 1)))
        await store.settle(held, Amount(1000), 0)
        granted(await store.take("b", Amount(1000, 1)))


async def test_all_keys_are_in_one_slot_and_expire(client: Redis) -> None:
    store = RedisStore(client, "open{ai}/gpt 5\n k", MINUTE)
    granted(await store.take("a", Amount(1000, 1)))
    waits(await store.take("b", Amount(1000, 1)))
    store.observe(Observation(tokens=Allowance(limit=900), pause=100))
    waits(await store.take("c", Amount(1, 1)))
    names = await client.keys()
    assert len(names) == 3
    assert len({key_slot(name) for name in names}) == 1
    for name in names:
        assert name.startswith(b"deltafan:{limit:open_ai_/gpt_5_")
        assert 0 < await client.pttl(name) <= 170_000


async def test_memory_in_redis_does_not_grow_with_what_is_granted(client: Redis) -> None:
    budget = Budget(tokens=10**9, window=0.06)
    store = RedisStore(client, NAME, budget)
    for number in range(500):
        granted(await store.take(str(number), Amount(1, 1)))
    [window] = await client.keys("*:window")
    assert await client.hlen(window) <= 2 * 62


async def test_a_clock_that_was_set_back_delays_nobody_longer_than_a_window(client: Redis) -> None:
    budget = Budget(tokens=100, window=0.3)
    store = RedisStore(client, NAME, budget)
    held = granted(await store.take("a", Amount(50)))
    [window] = await client.keys("*:window")
    await client.hset(window, f"t{held.slice + 10**6}", "50")
    assert waits(await store.take("b", Amount(100))).wait <= 0.31
    store.withdraw("b", Amount(100))
    await store.aclose()
    async with asyncio.timeout(10), TokenBucket(budget, store=store).limit(100):
        pass


async def test_what_one_process_learned_holds_for_all(client: Redis) -> None:
    one, other = (RedisStore(client, NAME, MINUTE) for _ in range(2))
    one.observe(Observation(pause=30))
    one.observe(Observation(tokens=Allowance(limit=500)))
    held = waits(await one.take("a", Amount(1, 1)))
    assert 25 < held.paused <= 30
    answer = waits(await other.take("b", Amount(1, 1)))
    assert 25 < answer.paused <= 30
    assert answer.state.tokens == 500


async def test_a_limiter_over_redis_keeps_models_and_keys_apart_and_never_shows_a_key(client: Redis) -> None:
    async with Limiter(MINUTE, stores=in_redis(client)) as limiter:
        for model, key in [("a", "sk-1"), ("a", "sk-2"), ("b", "sk-1")]:
            async with limiter.limit(1000, model=model, key=key):
                pass
        held = b" ".join([*await client.keys(), *[b"%r" % await client.hgetall(k) for k in await client.keys("*w")]])
    assert len(limiter) == 3
    assert b"sk-" not in held
