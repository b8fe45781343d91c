from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, TextDelta, Usage
from deltafan.llm import Request, Retrying

REQUEST = Request(model="m", messages=[])
ANSWER: list[Event | CompletionError] = [TextDelta("hello"), Usage(source="reported"), Done("stop")]


class Script:
    """Completions that do what they are told: each attempt's events, and an error in place of one to raise it."""

    def __init__(self, *attempts: list[Event | CompletionError]) -> None:
        self.attempts = list(attempts)
        self.requests: list[Request] = []
        self.closed = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            for step in self.attempts.pop(0):
                if isinstance(step, CompletionError):
                    raise step
                yield step
        finally:
            self.closed += 1


async def collect(ring: Retrying, request: Request = REQUEST) -> list[Event]:
    async with aclosing(ring.stream(request)) as events:
        return [event async for event in events]


def failed(code: str = "server_error", retry_after: float | None = None) -> list[Event | CompletionError]:
    return [CompletionError(code, "no", retry_after=retry_after)]


async def test_a_failure_before_anything_was_seen_is_tried_again() -> None:
    script = Script(failed(), failed("connection"), ANSWER)
    retries: list[tuple[str, int]] = []
    ring = Retrying(script, backoff=0.001, on_retry=lambda error, attempt, wait: retries.append((error.code, attempt)))
    assert await collect(ring) == ANSWER
    assert retries == [("server_error", 1), ("connection", 2)]
    assert script.closed == 3


async def test_the_last_attempts_error_is_raised() -> None:
    script = Script(failed(), failed("rate_limit"))
    with pytest.raises(CompletionError) as caught:
        await collect(Retrying(script, attempts=2, backoff=0.001))
    assert caught.value.code == "rate_limit"


@pytest.mark.parametrize("code", sorted(code for code, retryable in CompletionError.CODES.items() if not retryable))
async def test_what_cannot_get_better_is_not_tried_again(code: str) -> None:
    script = Script(failed(code), ANSWER)
    with pytest.raises(CompletionError):
        await collect(Retrying(script))
    assert len(script.requests) == 1


async def test_once_anything_was_seen_the_error_is_raised() -> None:
    script = Script([TextDelta("hel"), *failed("connection")], ANSWER)
    async with aclosing(Retrying(script).stream(REQUEST)) as events:
        assert await anext(events) == TextDelta("hel")
        with pytest.raises(CompletionError):
            await anext(events)
    assert len(script.requests) == 1


async def test_a_retry_after_within_the_bound_is_waited_for() -> None:
    waits: list[float] = []
    script = Script(failed("rate_limit", 0.02), ANSWER)
    await collect(Retrying(script, backoff=0.001, on_retry=lambda error, attempt, wait: waits.append(wait)))
    assert waits == [0.02]


async def test_a_retry_after_beyond_the_bound_is_raised_at_once() -> None:
    script = Script(failed("rate_limit", 60.0), ANSWER)
    with pytest.raises(CompletionError) as caught:
        await collect(Retrying(script, max_wait=5))
    assert caught.value.retry_after == 60
    assert len(script.requests) == 1


async def test_waits_grow_and_are_bounded() -> None:
    waits: list[float] = []
    script = Script(*[failed() for _ in range(6)], ANSWER)
    ring = Retrying(
        script, attempts=7, backoff=0.001, max_wait=0.004, on_retry=lambda error, attempt, wait: waits.append(wait)
    )
    await collect(ring)
    assert all(wait <= min(0.004, 0.001 * 2**number) for number, wait in enumerate(waits))
    assert len(set(waits)) == len(waits)


async def test_the_whole_timeout_bounds_all_attempts_together() -> None:
    script = Script(failed(), failed("rate_limit", 3.0), ANSWER)
    with pytest.raises(CompletionError) as caught:
        await collect(Retrying(script, backoff=0.001), Request(model="m", messages=[], timeout=2.0, stall_timeout=9.0))
    assert caught.value.code == "rate_limit"
    first, second = (request.timeout for request in script.requests)
    assert first == 2.0
    assert second is not None
    assert 2.0 > second > 0
    assert {request.stall_timeout for request in script.requests} == {9.0}


async def test_closing_the_ring_closes_what_is_inside() -> None:
    script = Script(ANSWER)
    async with aclosing(Retrying(script).stream(REQUEST)) as events:
        assert await anext(events) == TextDelta("hello")
        assert script.closed == 0
    assert script.closed == 1


async def test_a_later_attempts_timeout_tells_what_was_asked_for_all_of_them() -> None:
    script = Script(failed(), [CompletionError("timeout_total", "the request took longer than 1.2 s")])
    with pytest.raises(CompletionError) as caught:
        await collect(Retrying(script, backoff=0.001), Request(model="m", messages=[], timeout=2.0))
    assert str(caught.value) == "the request took longer than 1.2 s; all 2 attempts together had 2 s"
    assert caught.value.message == str(caught.value)
