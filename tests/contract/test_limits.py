"""The contract of a limit, over both stores: one process's memory, and Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deltafan.errors import CompletionError, ValidationError
from deltafan.llm.limits import Allowance, Budget, Observation, TokenBucket
from deltafan.llm.limits.memory import MemoryStore
from deltafan.llm.limits.shared import RedisStore
from tests.contract.limits_kit import Lab, check_windows

MINUTE = Budget(requests=10, tokens=1000)


@pytest_asyncio.fixture(params=["memory", "redis"])
async def lab(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Lab]:
    if request.param == "memory":
        yield Lab(MemoryStore)
        return
    async with Redis.from_url(redis_url) as client:
        made = Lab(lambda budget: RedisStore(client, "openai/gpt-5 k", budget))
        yield made
        await made.settled()


async def hold(bucket: TokenBucket, tokens: int, requests: int = 1, *, used: int | None = None) -> None:
    async with bucket.limit(tokens, requests) as slot:
        if used is not None:
            slot.settle(used)


async def waiting(bucket: TokenBucket, count: int = 1) -> None:
    """Until so many wait in this bucket."""
    async with asyncio.timeout(10):
        while bucket.statistics().waiting < count:
            await asyncio.sleep(0.002)


async def test_many_tasks_never_get_more_than_the_budget_in_any_window(lab: Lab) -> None:
    budget = Budget(requests=10, tokens=1000, window=0.15)
    bucket = lab.bucket(budget)
    dice = random.Random(7)

    async def work() -> None:
        tokens = dice.choice([10, 50, 200, 600])
        async with bucket.limit(tokens) as slot:
            await asyncio.sleep(dice.random() * 0.02)
            if dice.random() < 0.3:
                raise LookupError  # whoever says nothing has used all
            slot.settle(tokens)

    results = await asyncio.gather(*(work() for _ in range(40)), return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), LookupError}
    assert len(lab.grants) == 40
    check_windows(lab.grants, budget)
    assert bucket.statistics().open == bucket.statistics().waiting == 0


async def test_tokens_given_back_can_be_granted_again_and_no_window_is_overdrawn(lab: Lab) -> None:
    budget = Budget(tokens=1000, window=0.3)
    bucket = lab.bucket(budget)

    async def work(number: int) -> None:
        async with bucket.limit(100, max_output=400) as slot:
            await asyncio.sleep(0.01)
            slot.charge(number % 3 * 50)

    await asyncio.gather(*(work(number) for number in range(20)))
    assert sorted({grant.amount.tokens for grant in lab.grants}) == [100, 150, 200]
    check_windows(lab.grants, budget)
    first_window = [grant for grant in lab.grants if grant.at < lab.grants[0].at + budget.window_ms]
    assert len(first_window) > 2, "without what came back there would have been two"


async def test_first_come_first_served(lab: Lab) -> None:
    bucket = lab.bucket(Budget(tokens=100, window=0.2))
    await hold(bucket, 100)
    tasks = []
    sizes = [20, 80, 30, 10, 100, 40, 90, 50]
    for number, tokens in enumerate(sizes, start=2):
        tasks.append(asyncio.create_task(hold(bucket, tokens)))
        while len(lab.stores[0].answered) < number:
            await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    at = {grant.amount.tokens: grant.at for grant in lab.grants[1:]}
    assert sorted(at[tokens] for tokens in sizes) == [at[tokens] for tokens in sizes]


async def test_a_stream_of_small_requests_does_not_starve_a_large_one(lab: Lab) -> None:
    bucket = lab.bucket(Budget(tokens=100, window=0.3))
    stop = asyncio.Event()

    async def small() -> None:
        while not stop.is_set():
            await hold(bucket, 5)

    small_ones = [asyncio.create_task(small()) for _ in range(8)]
    await waiting(bucket, 1)
    async with asyncio.timeout(20):
        await hold(bucket, 100)
    stop.set()
    await asyncio.gather(*small_ones)


async def test_what_is_given_back_lets_the_next_in_before_the_window_ends(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE)
    async with bucket.limit(900) as slot:
        behind = asyncio.create_task(hold(bucket, 500))
        await waiting(bucket)
        slot.settle(100)
    async with asyncio.timeout(10):
        await behind


async def test_a_refund_gives_the_request_back_too(lab: Lab) -> None:
    bucket = lab.bucket(Budget(requests=1, tokens=10))
    async with bucket.limit(10) as slot:
        slot.refund()
    async with asyncio.timeout(10):
        await hold(bucket, 10)


async def test_what_was_used_beyond_the_grant_is_owed(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE, max_wait=0.05)
    await hold(bucket, 10, used=1500)
    with pytest.raises(CompletionError) as caught:
        await hold(bucket, 1)
    assert "1500 tokens and 1 requests are used of 1000 tokens and 10 requests in 60 s" in str(caught.value)


async def test_one_who_is_cancelled_while_waiting_takes_nothing_and_holds_nobody_up(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE)
    await hold(bucket, 600)
    large = asyncio.create_task(hold(bucket, 900))
    await waiting(bucket, 1)
    small = asyncio.create_task(hold(bucket, 400))
    await waiting(bucket, 2)
    large.cancel()
    async with asyncio.timeout(10):
        await small
    assert [grant.amount.tokens for grant in lab.grants] == [600, 400]
    assert bucket.statistics().open == bucket.statistics().waiting == 0


async def test_one_who_is_cancelled_in_the_middle_has_used_what_it_reserved(lab: Lab) -> None:
    bucket = lab.bucket(Budget(tokens=100, window=0.5), max_wait=10)
    entered = asyncio.Event()

    async def work() -> None:
        async with bucket.limit(100):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await hold(bucket, 100)
    check_windows(lab.grants, bucket.budget)
    assert len(lab.grants) == 2, "and it is not lost for ever"


@pytest.mark.parametrize("seed", range(3))
async def test_random_cancellations_lose_no_budget_and_overdraw_none(lab: Lab, seed: int) -> None:
    budget = Budget(requests=8, tokens=400, window=0.2)
    bucket = lab.bucket(budget)
    dice = random.Random(seed)
    tasks = [asyncio.create_task(hold(bucket, dice.choice([10, 50, 100]))) for _ in range(40)]
    for task in dice.sample(tasks, 25):
        await asyncio.sleep(dice.random() * 0.01)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    check_windows(lab.grants, budget)
    await lab.settled()
    async with asyncio.timeout(10):
        await hold(bucket, 400, 8)
    assert bucket.statistics().open == bucket.statistics().waiting == 0


@pytest.mark.parametrize(("tokens", "requests"), [(1001, 1), (1, 11)])
async def test_more_than_the_whole_budget_is_refused_at_once(lab: Lab, tokens: int, requests: int) -> None:
    bucket = lab.bucket(MINUTE)
    with pytest.raises(CompletionError) as caught:
        await hold(bucket, tokens, requests)
    assert (caught.value.code, caught.value.retryable) == ("bad_request", False)
    assert f"{tokens} tokens and {requests} requests" in str(caught.value)
    assert "openai/gpt-5" in str(caught.value)
    assert "1000 tokens and 10 requests in 60 s" in str(caught.value)


async def test_the_requests_own_timeout_ends_the_wait_with_numbers(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE)
    await hold(bucket, 900)
    with pytest.raises(CompletionError) as caught:
        async with bucket.limit(200, timeout=0.05):
            pytest.fail("there is no budget")
    assert (caught.value.code, caught.value.retryable) == ("timeout_total", False)
    assert "no budget within 0.05 s" in str(caught.value)
    assert "It needs 200 tokens and 1 requests" in str(caught.value)
    assert "900 tokens and 1 requests are used of 1000 tokens and 10 requests in 60 s" in str(caught.value)
    assert 55 < (caught.value.retry_after or 0) <= 61


async def test_the_limiters_own_bound_ends_the_wait_as_a_rate_limit(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE, max_wait=0.05)
    await hold(bucket, 1000)
    with pytest.raises(CompletionError) as caught:
        async with bucket.limit(200, timeout=60):
            pytest.fail("there is no budget")
    assert (caught.value.code, caught.value.retryable) == ("rate_limit", True)


async def test_a_pause_longer_than_the_time_that_is_left_is_told_at_once(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE)
    bucket.observe(Observation(pause=600))
    with pytest.raises(CompletionError) as caught:
        async with asyncio.timeout(10), bucket.limit(1, timeout=60):
            pytest.fail("the provider wants a pause")
    assert caught.value.code == "rate_limit"
    assert caught.value.retry_after == pytest.approx(600, abs=5)


async def test_a_short_pause_is_waited_out(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE)
    bucket.observe(Observation(pause=0.1))
    async with bucket.limit(1, timeout=30) as slot:
        assert slot.waited >= 0.09


async def test_what_the_provider_tells_is_heeded(lab: Lab) -> None:
    bucket = lab.bucket(MINUTE, max_wait=0.05)
    bucket.observe(Observation(tokens=Allowance(limit=500, remaining=100, reset=30), requests=Allowance(limit=99)))
    await hold(bucket, 100)
    with pytest.raises(CompletionError) as caught:
        await hold(bucket, 100)
    assert "500 tokens and 2 requests" not in str(caught.value)
    assert "500 tokens and 1 requests are used of 500 tokens and 10 requests" in str(caught.value)
    assert 20 < (caught.value.retry_after or 0) <= 31


async def test_a_limit_that_only_the_provider_knows_is_learned(lab: Lab) -> None:
    bucket = lab.bucket(Budget())
    await hold(bucket, 10**6)
    bucket.observe(Observation(requests=Allowance(limit=3)))
    await hold(bucket, 10**6, 2)
    with pytest.raises(CompletionError) as caught:
        await hold(bucket, 1, 4)
    assert "3 requests in 60 s" in str(caught.value)


@pytest.mark.parametrize("given", [{"tokens": -1}, {"requests": -1}, {"max_output": 1.5}, {"tokens": 2**41}])
async def test_amounts_that_make_no_sense_are_refused_by_name(lab: Lab, given: dict[str, int]) -> None:
    with pytest.raises(ValidationError) as caught:
        lab.bucket(MINUTE).limit(**given)
    assert [error.field for error in caught.value.fields] == list(given)
