"""Batches: in order, bounded, and safe to cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager

import pytest

from deltafan.client import OpenAIClient, Result, iter_batch, run_batch
from deltafan.devserver.provider import Echo, Provider, Script, running
from deltafan.errors import CompletionError, ValidationError


class Gauge:
    """How many calls run, and how many ran at most."""

    def __init__(self) -> None:
        self.running = self.most = self.cancelled = 0

    async def call(self, value: int, rounds: int = 3) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(rounds):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if value % 7 == 3:
            raise ValueError(value)
        return value

    async def forever(self) -> int:
        return await self.call(0, rounds=10**9)


async def test_results_and_errors_come_in_place_and_in_order() -> None:
    gauge = Gauge()
    outcomes = await run_batch([gauge.call(n, rounds=20 - n) for n in range(20)], concurrency=6)
    assert [str(o) if isinstance(o, ValueError) else o for o in outcomes] == [
        str(n) if n % 7 == 3 else n for n in range(20)
    ]
    assert gauge.most == 6


async def test_a_generator_is_asked_for_no_more_than_can_run() -> None:
    gauge = Gauge()
    made = 0

    def calls() -> Iterator[Awaitable[int]]:
        nonlocal made
        for n in range(100):
            made += 1
            yield gauge.call(n)

    async for _ in iter_batch(calls(), 4):
        assert made - gauge.running <= 100
        break
    assert made <= 8


async def test_each_comes_as_it_completes() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def wait(place: int) -> int:
        await gates[place].wait()
        return place * 10

    batch = iter_batch([wait(n) for n in range(3)], 3)
    for place in (2, 0, 1):
        gates[place].set()
        assert await anext(batch) == (place, place * 10)
    with pytest.raises(StopAsyncIteration):
        await anext(batch)


async def test_cancelling_ends_what_runs_and_closes_what_waits() -> None:
    gauge = Gauge()
    task = asyncio.ensure_future(run_batch([gauge.forever() for _ in range(10)], 3))  # noqa: RUF006 - awaited below
    while gauge.running < 3:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (gauge.running, gauge.cancelled) == (0, 3)  # the other seven: closed, or a warning fails this test


async def test_a_call_that_somebody_else_cancelled_is_one_that_failed() -> None:
    async def cancelled() -> int:
        raise asyncio.CancelledError

    async def fine() -> int:
        return 1

    failed, other = await run_batch([cancelled(), fine()])
    assert isinstance(failed, CompletionError)
    assert failed.code == "cancelled"
    assert other == 1


@pytest.mark.parametrize("concurrency", [0, -1, 1.5])
async def test_a_senseless_concurrency_is_refused(concurrency: int) -> None:
    with pytest.raises(ValidationError, match=r"^concurrency: "):
        await run_batch([Gauge().call(1)], concurrency)


async def test_an_empty_batch_is_empty() -> None:
    assert await run_batch([]) == []


@asynccontextmanager
async def echo() -> AsyncIterator[Provider]:
    async with running(Script(source=Echo())) as provider:
        yield provider


async def test_a_batch_of_completions_shows_a_bar_when_asked(use: object, capsys: pytest.CaptureFixture[str]) -> None:
    async with echo() as provider:
        use(provider)  # type: ignore[operator]
        async with OpenAIClient("gpt-5-mini") as client:
            questions = [f"question {n}" for n in range(12)]
            results = await client.run_batch([client.invoke(q) for q in questions], concurrency=4, progress=True)
    assert [result.text for result in results if isinstance(result, Result)] == questions
    shown = capsys.readouterr()
    assert "12/12" in shown.err
    assert shown.out == ""
