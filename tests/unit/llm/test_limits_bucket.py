"""Limits of one process: event loops, bounds, models and keys."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm.limits import Budget, Limiter, Observation, TokenBucket
from deltafan.llm.limits import bucket as bucket_module
from deltafan.llm.limits import limiter as limiter_module
from deltafan.llm.limits.bucket import SEATS
from deltafan.llm.limits.limiter import key_digest

MINUTE = Budget(requests=10, tokens=1000)


async def hold(bucket: TokenBucket, tokens: int, requests: int = 1) -> None:
    async with bucket.limit(tokens, requests):
        pass


async def waiting(bucket: TokenBucket, count: int) -> None:
    async with asyncio.timeout(10):
        while bucket.statistics().waiting < count:
            await asyncio.sleep(0)


def test_a_limit_holds_from_one_event_loop_to_the_next() -> None:
    bucket = TokenBucket(MINUTE, max_wait=0.01)
    asyncio.run(hold(bucket, 1000))
    with pytest.raises(CompletionError):
        asyncio.run(hold(bucket, 1))


def test_who_waited_in_a_loop_that_was_closed_holds_nobody_up() -> None:
    bucket = TokenBucket(MINUTE)

    async def begin() -> None:
        await hold(bucket, 600)
        task.append(asyncio.ensure_future(hold(bucket, 900)))
        await waiting(bucket, 1)
        await asyncio.sleep(0)

    task: list[asyncio.Future[None]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()  # as where a program leaves its loop without ending its tasks
    asyncio.run(hold(bucket, 400))
    task[0]._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_two_event_loops_at_once_are_refused() -> None:
    bucket = TokenBucket(MINUTE)
    await hold(bucket, 1)
    caught: list[BaseException] = []

    def other() -> None:
        try:
            asyncio.run(hold(bucket, 1))
        except ConfigurationError as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "limiter: it serves one event loop" in str(caught[0])
    assert "give each loop a limiter" in str(caught[0])


async def test_more_than_the_seats_wait_in_order() -> None:
    bucket = TokenBucket(Budget(requests=1, window=0.06))
    order: list[int] = []

    async def work(number: int) -> None:
        async with bucket.limit() as slot:
            order.append(number)
            slot.refund()

    await hold(bucket, 0)
    tasks = [asyncio.create_task(work(number)) for number in range(3 * SEATS)]
    await waiting(bucket, 3 * SEATS)
    await asyncio.gather(*tasks)
    assert order == list(range(3 * SEATS))


async def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "MAX_WAITING", 3)
    bucket = TokenBucket(MINUTE)
    await hold(bucket, 1000)
    tasks = [asyncio.create_task(hold(bucket, 1)) for _ in range(3)]
    await waiting(bucket, 3)
    with pytest.raises(CompletionError) as caught:
        await hold(bucket, 1)
    assert (caught.value.code, caught.value.retryable) == ("rate_limit", True)
    assert "3 requests wait for it already" in str(caught.value)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bucket.statistics().waiting == 0


async def test_one_without_a_seat_times_out_too() -> None:
    bucket = TokenBucket(MINUTE)
    await hold(bucket, 1000)
    tasks = [asyncio.create_task(hold(bucket, 1)) for _ in range(SEATS)]
    await waiting(bucket, SEATS)
    with pytest.raises(CompletionError) as caught:
        async with bucket.limit(1, timeout=0.01):
            pytest.fail("there is no budget")
    assert f"{SEATS + 1} requests wait in this process" in str(caught.value)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slot_that_says_nothing_has_used_all_and_one_that_charges_what_it_says() -> None:
    bucket = TokenBucket(MINUTE, max_wait=0.01)
    async with bucket.limit(100, max_output=400):
        pass
    async with bucket.limit(100, max_output=400) as slot:
        slot.charge(50)
        slot.charge(20)
    await hold(bucket, 330)
    with pytest.raises(CompletionError):
        await hold(bucket, 1)


async def test_models_and_keys_have_limits_of_their_own() -> None:
    async with Limiter(MINUTE, max_wait=0.01) as limiter:
        for model, key in [("a", "k1"), ("a", "k2"), ("b", "k1"), ("", "")]:
            async with limiter.limit(1000, model=model, key=key):
                pass
        with pytest.raises(CompletionError) as caught:
            async with limiter.limit(1, model="a", key="k1"):
                pytest.fail("there is no budget")
    assert "k1" not in str(caught.value)
    assert "the limit of a:" in str(caught.value)


async def test_budgets_by_model() -> None:
    budgets = {"small": Budget(tokens=10)}
    async with Limiter(budgets.get) as limiter:
        with pytest.raises(CompletionError):
            async with limiter.limit(11, model="small"):
                pytest.fail("more than the budget")
        async with limiter.limit(10**9, model="without"):
            pass


async def test_a_limit_that_nobody_uses_makes_room_and_one_in_use_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_module, "MAX_LIMITS", 2)
    limiter = Limiter(MINUTE)
    async with limiter.limit(1, model="a") as slot, limiter.limit(1, model="b"):
        with pytest.raises(CompletionError) as caught:
            limiter.limit(1, model="c")
        assert caught.value.code == "rate_limit"
        slot.refund()
    assert len(limiter) == 2
    async with limiter.limit(1, model="c"):
        pass
    assert len(limiter) == 2, "a, of which nothing counts any more, is forgotten; b still counts"


async def test_news_of_nothing_makes_no_limit() -> None:
    limiter = Limiter(MINUTE)
    limiter.observe(Observation(), model="a")
    assert len(limiter) == 0


def test_a_key_is_kept_as_a_digest() -> None:
    assert key_digest("") == ""
    assert "sk" not in key_digest("sk-test-0123")
    assert len(key_digest("sk-test-0123")) == 16
