"""The time limits, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deltafan.errors import CompletionError
from deltafan.llm.deadline import Deadline


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is moved."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def on_clock(test: Callable[[Clock], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        return await test(loop)

    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(main())


async def pass_time(clock: Clock, seconds: float) -> None:
    clock.now += seconds
    for _ in range(4):
        await asyncio.sleep(0)


async def never() -> None:
    await asyncio.Event().wait()


async def outcome(task: asyncio.Task[Any]) -> str:
    try:
        await task
    except CompletionError as error:
        return error.code
    except asyncio.CancelledError:
        return "cancelled"
    return "done"


@pytest.mark.parametrize(
    ("limits", "visible", "after", "code"),
    [
        ((10, None, None), False, 10, "timeout_total"),
        ((10, None, None), True, 10, "timeout_total"),
        ((None, 5, None), False, 5, "timeout_first_token"),
        ((None, None, 3), True, 3, "timeout_stall"),
        ((10, 5, 3), False, 5, "timeout_first_token"),
        ((4, 5, 3), False, 4, "timeout_total"),
        ((10, 5, 3), True, 3, "timeout_stall"),
    ],
)
def test_each_limit_ends_a_wait_when_it_is_reached_and_not_before(
    limits: tuple[float | None, float | None, float | None], visible: bool, after: float, code: str
) -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(*limits)
        deadline.visible = visible
        task = asyncio.create_task(deadline.wait(never))
        await pass_time(clock, 0)
        await pass_time(clock, after - 0.01)
        assert not task.done()
        await pass_time(clock, 0.02)
        assert await outcome(task) == code

    on_clock(test)


def test_every_read_starts_the_stall_limit_anew() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(None, None, 3)
        deadline.visible = True
        for _ in range(5):
            arrived = asyncio.Event()
            task = asyncio.create_task(deadline.wait(arrived.wait))
            await pass_time(clock, 0)
            await pass_time(clock, 2.9)
            arrived.set()
            assert await outcome(task) == "done"
        deadline.close()

    on_clock(test)


def test_the_stall_limit_does_not_hold_before_the_first_token() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(None, 100, 3)
        task = asyncio.create_task(deadline.wait(never))
        await pass_time(clock, 0)
        await pass_time(clock, 99)
        assert not task.done()
        await pass_time(clock, 2)
        assert await outcome(task) == "timeout_first_token"

    on_clock(test)


def test_time_that_the_consumer_takes_is_no_stall_but_counts_for_the_whole() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(20, None, 3)
        deadline.visible = True

        async def consume() -> None:
            await deadline.wait(lambda: asyncio.sleep(0))
            await pass_time(clock, 10)  # nobody waits for the provider
            await deadline.wait(lambda: asyncio.sleep(0))
            await pass_time(clock, 11)
            await deadline.wait(lambda: asyncio.sleep(0))

        assert await outcome(asyncio.create_task(consume())) == "timeout_total"
        assert clock.now == 1021

    on_clock(test)


def test_a_cancellation_from_outside_stays_one() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(10, 5, 3)
        task = asyncio.create_task(deadline.wait(never))
        await pass_time(clock, 1)
        task.cancel()
        assert await outcome(task) == "cancelled"
        deadline.close()

    on_clock(test)


def test_a_cancellation_from_outside_wins_over_a_limit_reached_at_the_same_time() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(None, 5, None)
        task = asyncio.create_task(deadline.wait(never))
        await pass_time(clock, 0)
        clock.call_at(clock.now + 5, task.cancel)
        await pass_time(clock, 6)
        assert await outcome(task) == "cancelled"

    on_clock(test)


def test_a_task_that_timed_out_is_not_left_cancelled() -> None:
    async def test(clock: Clock) -> None:
        deadline = Deadline(None, 5, None)

        async def wait_twice() -> int:
            with pytest.raises(CompletionError):
                await deadline.wait(never)
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        task = asyncio.create_task(wait_twice())
        await pass_time(clock, 0)
        await pass_time(clock, 6)
        assert await task == 0

    on_clock(test)


def test_many_reads_make_one_timer() -> None:
    async def test(clock: Clock) -> None:
        made = 0
        call_at = clock.call_at

        def counting(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            nonlocal made
            made += 1
            return call_at(*args, **kwargs)

        clock.call_at = counting  # type: ignore[method-assign]
        deadline = Deadline(100, 50, 10)
        for count in range(1000):
            deadline.visible = count > 0
            clock.now += 0.001
            await deadline.wait(lambda: asyncio.sleep(0))
        deadline.close()
        assert made == 2  # one for the first token, one for the stall limit, which is nearer

    on_clock(test)
