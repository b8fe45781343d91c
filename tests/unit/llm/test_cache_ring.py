"""The ring that answers from a cache: what it stores, what it gives back, and who shares what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltafan.errors import BadRequestError, CompletionError, RateLimitError, ValidationError
from deltafan.events import (
    Done,
    Event,
    Meta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from deltafan.llm import Request, Started
from deltafan.llm.cache import Cached, warm_cache
from deltafan.llm.cache.entry import LASTING
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.seam import Ended
from deltafan.telemetry.hooks import Signal

REQUEST = Request(model="openai/gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
USAGE = Usage(7, 2, 9, cached_tokens=1, reasoning_tokens=0, cost_usd=0.25, source="reported")
STARTED = Started(provider="openai", model="gpt-5-mini-2025", request_id="r1", created=5, response_id="resp_1")
ANSWER: list[Event] = [STARTED, TextDelta("Hel"), TextDelta("lo"), USAGE, Done("stop")]
REPLAYED: list[Event] = [TextDelta("Hello"), replace(USAGE, cost_usd=0.0), Done("stop")]
Step = Event | CompletionError | asyncio.Event


class Script:
    """Completions that do what they are told, call by call: events, an error to raise, an `asyncio.Event` to await."""

    def __init__(self, *calls: list[Any]) -> None:
        self.calls = list(calls)
        self.requests: list[Request] = []
        self.closed = 0
        self.sent = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        steps: list[Step] = self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]
        try:
            for step in steps:
                if isinstance(step, CompletionError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                    continue
                self.sent += 1
                yield step
        finally:
            self.closed += 1


async def collect(ring: Cached, request: Request = REQUEST) -> list[Event]:
    async with aclosing(ring.stream(request)) as events:
        return [event async for event in events]


def asking(**options: Any) -> Request:
    return replace(REQUEST, options=options)


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def was_cached(events: list[Event]) -> bool:
    return isinstance(events[0], Started) and events[0].cached


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def cache(tmp_path: Path) -> FsCache:
    return FsCache(tmp_path)


async def test_the_second_time_the_cache_answers_at_no_cost(cache: FsCache) -> None:
    script = Script(ANSWER)
    async with Cached(script, cache) as ring:
        assert await collect(ring) == ANSWER, "the first passes as it came"
        first, *rest = await collect(ring)
    assert rest == REPLAYED
    assert isinstance(first, Started)
    assert (first.cached, first.provider, first.model) == (True, "openai", "gpt-5-mini-2025")
    assert (first.response_id, first.request_id) == ("resp_1", None)
    assert len(script.requests) == 1


async def test_what_the_answer_had_cost_can_be_looked_up(cache: FsCache) -> None:
    async with Cached(Script(ANSWER), cache) as ring:
        await collect(ring)
        (entry,) = await ring.generations(REQUEST)
    assert entry.usage == USAGE


async def test_everything_of_an_answer_comes_back(cache: FsCache) -> None:
    body: list[Event] = [
        ReasoningDelta("hm "),
        ReasoningDelta("👋"),
        TextDelta("a", choice=0),
        TextDelta("b", choice=1),
        TextDelta("世界\x00", choice=1),
        RefusalDelta("no"),
        ToolCallDelta(0, "", "call_1", "look"),
        ToolCallDelta(0, '{"a"'),
        ToolCallDelta(0, ":1}"),
        ToolCallDelta(1, "{}", "call_2", "look"),
        ToolResult(call_id="call_1", name="look", result={"deep": [1, None, "é"]}),
        ToolResult(call_id="call_2", name="look", error="gone"),
    ]
    script = Script([*body, USAGE, Done("tool_calls")])
    async with Cached(script, cache, pace=1e9) as in_pieces, Cached(script, cache) as at_once:
        await collect(in_pieces)
        assert (await collect(in_pieces))[1:-2] == body, "piece for piece"
        merged = await collect(at_once)
    assert merged[1:-2] == [
        ReasoningDelta("hm 👋"),
        TextDelta("a"),
        TextDelta("b世界\x00", choice=1),
        RefusalDelta("no"),
        ToolCallDelta(0, '{"a":1}', "call_1", "look"),
        *body[9:],
    ]
    assert merged[-1] == Done("tool_calls")
    assert len(script.requests) == 1


async def test_each_choice_comes_back_with_its_own_finish_reason(cache: FsCache) -> None:
    end = Ended("stop", finish_reasons={0: "stop", 1: "length"})
    script = Script([TextDelta("a"), TextDelta("b", choice=1), USAGE, end])
    async with Cached(script, cache) as ring:
        await collect(ring)
        assert (await collect(ring))[-1] == end
    assert len(script.requests) == 1


async def test_a_replay_keeps_its_pace(cache: FsCache) -> None:
    async with Cached(Script(ANSWER), cache, pace=20.0) as ring:
        await collect(ring)
        loop = asyncio.get_running_loop()
        start = loop.time()
        replayed = await collect(ring)
        assert loop.time() - start >= 0.05, "two deltas, twenty a second: the second waits"
    assert replayed[1:3] == [TextDelta("Hel"), TextDelta("lo")]


@pytest.mark.parametrize("reason", ["cancelled", "expired", "error"])
async def test_an_answer_that_was_cut_short_is_not_stored(cache: FsCache, reason: Any) -> None:
    script = Script([TextDelta("Hel"), USAGE, Done(reason)])
    async with Cached(script, cache) as ring:
        await collect(ring)
        await collect(ring)
    assert len(script.requests) == 2


@pytest.mark.parametrize("steps", [[TextDelta("Hel")], [TextDelta("Hel"), USAGE], [TextDelta("Hel"), Done("stop")]])
async def test_a_stream_without_its_end_is_not_stored(cache: FsCache, steps: list[Event]) -> None:
    script = Script(steps)
    async with Cached(script, cache) as ring:
        await collect(ring)
        await collect(ring)
    assert len(script.requests) == 2


@pytest.mark.parametrize("cache_errors", [False, True])
async def test_a_failure_in_mid_stream_is_never_stored(cache: FsCache, cache_errors: bool) -> None:
    script = Script([TextDelta("Hel"), CompletionError("server_error", "no")])
    async with Cached(script, cache) as ring:
        for _ in range(2):
            with pytest.raises(CompletionError):
                await collect(ring, asking(cache_errors=cache_errors))
    assert len(script.requests) == 2


async def test_a_failure_is_stored_for_those_who_want_that_only(cache: FsCache) -> None:
    error = CompletionError("bad_request", "no such thing", status=400, provider="openai", model="m")
    script = Script([error], [error], ANSWER)
    async with Cached(script, cache) as ring:
        for _ in range(2):
            with pytest.raises(BadRequestError, match="no such thing") as caught:
                await collect(ring, asking(cache_errors=True))
            assert (caught.value.status, caught.value.provider, caught.value.retryable) == (400, "openai", False)
        assert len(script.requests) == 1
        with pytest.raises(BadRequestError):
            await collect(ring)
        assert len(script.requests) == 2
        assert await collect(ring) == ANSWER
        assert was_cached(await collect(ring, asking(cache_errors=True))), "a good answer takes its place"


@pytest.mark.parametrize("code", sorted(CompletionError.CODES.keys() - LASTING))
async def test_a_failure_that_is_one_callers_or_passes_is_never_stored(cache: FsCache, code: str) -> None:
    script = Script([CompletionError(code, "no")], ANSWER)
    async with Cached(script, cache) as ring:
        with pytest.raises(CompletionError):
            await collect(ring, asking(cache_errors=True))
        assert await collect(ring, asking(cache_errors=True)) == ANSWER


async def test_what_another_deployment_of_the_name_answers_is_stored_and_a_fallbacks_answer_is_not(
    cache: FsCache,
) -> None:
    names = {"one": REQUEST.model, "two": REQUEST.model, "else": "another"}
    for deployment, stored in (("else", False), ("two", True)):
        answer = [replace(STARTED, deployment=deployment), *ANSWER[1:]]
        async with Cached(Script(answer), cache, name_of=names.get) as ring:
            await collect(ring)
            assert was_cached(await collect(ring)) is stored


async def test_a_stored_failure_does_not_take_a_good_answers_place(cache: FsCache) -> None:
    script = Script(ANSWER, [CompletionError("bad_request", "no")])
    async with Cached(script, cache) as ring:
        await collect(ring)
        with pytest.raises(CompletionError):
            await collect(ring, asking(cache_errors=True, rewrite_cache=True))
        assert was_cached(await collect(ring))


async def test_an_answer_need_not_be_stored(cache: FsCache) -> None:
    script = Script(ANSWER)
    async with Cached(script, cache) as ring:
        await collect(ring, asking(cache_response=False))
        assert not was_cached(await collect(ring))
        assert was_cached(await collect(ring, asking(cache_response=False))), "what is stored is read all the same"


async def test_rewriting_replaces_and_regenerating_adds(cache: FsCache) -> None:
    script = Script(*([TextDelta(word), USAGE, Done("stop")] for word in ("one", "two", "three", "four")))
    async with Cached(script, cache) as ring:
        await collect(ring)
        assert text(await collect(ring, asking(regen_cache=True))) == "two"
        assert text(await collect(ring)) == "two", "readers get the newest"
        assert [text(list(one.events)) for one in await ring.generations(REQUEST)] == ["one", "two"]
        assert text(await collect(ring, asking(rewrite_cache=True))) == "three"
        assert [text(list(one.events)) for one in await ring.generations(REQUEST)] == ["three"]
        assert await ring.forget(REQUEST)
        assert await ring.generations(REQUEST) == ()
        assert text(await collect(ring)) == "four"


async def test_no_more_than_eight_generations_are_kept(cache: FsCache) -> None:
    script = Script(*([TextDelta(str(n)), USAGE, Done("stop")] for n in range(10)))
    async with Cached(script, cache) as ring:
        for _ in range(10):
            await collect(ring, asking(regen_cache=True))
        kept = [text(list(one.events)) for one in await ring.generations(REQUEST)]
    assert kept == [str(n) for n in range(2, 10)]


async def test_an_identifier_a_tenant_and_a_namespace_keep_entries_apart(cache: FsCache) -> None:
    script = Script(ANSWER)
    async with Cached(script, cache) as ring, Cached(script, cache, namespace="other") as other:
        await collect(ring)
        for asked in (asking(identifier="a"), asking(identifier="b"), asking(tenant="a"), asking(tenant="b")):
            assert not was_cached(await collect(ring, asked))
            assert was_cached(await collect(ring, asked))
        assert not was_cached(await collect(other))


async def test_an_entry_lives_as_long_as_was_said(cache: FsCache) -> None:
    script = Script(ANSWER)
    async with Cached(script, cache, ttl=3600) as ring:
        await collect(ring, asking(ttl=0.02))
        async with asyncio.timeout(10):
            while was_cached(await collect(ring, asking(cache_response=False))):
                await asyncio.sleep(0.01)
        await collect(ring)
        assert was_cached(await collect(ring))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"ttl": 0}, "ttl: must be a number"),
        ({"ttl": "1h"}, "ttl: must be a number"),
        ({"ttl": float("inf")}, "ttl: must be a number"),
        ({"cache_response": "no"}, "cache_response: must be true or false"),
        ({"identifier": ""}, "identifier: must be text"),
        ({"tenant": 7}, "tenant: must be text"),
        ({"regen_cache": True, "rewrite_cache": True}, "regen_cache: must not be set together"),
    ],
)
async def test_wrong_options_are_refused_by_name(cache: FsCache, options: dict[str, Any], rule: str) -> None:
    async with Cached(Script(ANSWER), cache) as ring:
        with pytest.raises(CompletionError, match=rule) as caught:
            await collect(ring, asking(**options))
    assert caught.value.code == "bad_request"


async def test_what_was_void_after_a_restart_is_not_stored(cache: FsCache) -> None:
    script = Script(
        [STARTED, TextDelta("void"), Meta(restart=True, model="b", provider="groq"), TextDelta("good"), USAGE, Done()]
    )
    async with Cached(script, cache) as ring:
        await collect(ring)
        started, *rest = await collect(ring)
    assert isinstance(started, Started)
    assert (started.provider, started.model, text(rest)) == ("groq", "b", "good")


async def test_an_answer_too_large_is_passed_on_whole_and_not_stored(cache: FsCache) -> None:
    large: list[Event] = [*(TextDelta("x" * 100) for _ in range(500)), USAGE, Done()]
    signals: list[Signal] = []
    script = Script(large)
    async with Cached(script, cache, max_bytes=10_000, hook=signals.append) as ring:
        assert await collect(ring) == large
        assert await collect(ring) == large
    assert len(script.requests) == 2
    assert "cache.oversized" in {signal.name for signal in signals}


# One flight


async def test_equal_requests_at_the_same_time_ask_once_and_all_get_everything(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([STARTED, TextDelta("Hel"), gate, TextDelta("lo"), USAGE, Done("stop")])
    async with Cached(script, cache) as ring:
        early = [asyncio.create_task(collect(ring)) for _ in range(5)]
        await until(lambda: script.sent == 2)
        late = asyncio.create_task(collect(ring))
        await asyncio.sleep(0)
        gate.set()
        assert [await task for task in (*early, late)] == [ANSWER] * 6, "from the first event on"
        assert was_cached(await collect(ring))
    assert len(script.requests) == 1


async def test_events_come_while_the_answer_is_made(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([TextDelta("Hel"), gate, TextDelta("lo"), USAGE, Done()])
    async with Cached(script, cache) as ring, aclosing(ring.stream(REQUEST)) as events:
        assert await anext(events) == TextDelta("Hel")
        assert not gate.is_set()
        gate.set()
        assert [event async for event in events][-1] == Done()


async def test_the_first_may_leave_and_the_others_lose_nothing(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([STARTED, TextDelta("Hel"), gate, TextDelta("lo"), USAGE, Done("stop")])
    async with Cached(script, cache) as ring:
        leader = asyncio.create_task(collect(ring))
        await until(lambda: script.sent == 2)
        follower = asyncio.create_task(collect(ring))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert script.closed == 0
        gate.set()
        assert await follower == ANSWER
        assert was_cached(await collect(ring))
    assert len(script.requests) == 1


async def test_when_the_last_one_leaves_the_provider_is_closed_and_nothing_stored(cache: FsCache) -> None:
    script = Script([TextDelta("Hel"), asyncio.Event(), USAGE, Done()], ANSWER)
    async with Cached(script, cache) as ring:
        tasks = [asyncio.create_task(collect(ring)) for _ in range(3)]
        await until(lambda: script.sent == 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert script.closed == 1, "before the last one's cancellation ended"
        assert await collect(ring) == ANSWER


async def test_closing_a_stream_closes_the_provider_at_once(cache: FsCache) -> None:
    script = Script([TextDelta("Hel"), asyncio.Event()])
    async with Cached(script, cache) as ring:
        events = ring.stream(REQUEST)
        assert await anext(events) == TextDelta("Hel")
        await events.aclose()
        assert script.closed == 1


async def test_who_leaves_at_done_leaves_the_answer_stored(cache: FsCache) -> None:
    script = Script(ANSWER)
    async with Cached(script, cache) as ring, aclosing(ring.stream(REQUEST)) as events:
        async for event in events:
            if isinstance(event, Done):
                break
    async with Cached(script, cache) as ring:
        assert was_cached(await collect(ring))


async def test_a_failure_goes_to_all_each_with_an_error_of_its_own(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([TextDelta("Hel"), gate, CompletionError("rate_limit", "slow down", status=429)])
    async with Cached(script, cache) as ring:
        tasks = [asyncio.create_task(collect(ring)) for _ in range(3)]
        await until(lambda: script.sent == 1)
        gate.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(type(e), e.message, e.status) for e in errors] == [(RateLimitError, "slow down", 429)] * 3  # type: ignore[union-attr]
    assert len({id(error) for error in errors}) == 3
    assert len(script.requests) == 1


async def test_requests_with_other_limits_or_options_do_not_share(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([gate, *ANSWER])
    async with Cached(script, cache) as ring:
        asked = (REQUEST, replace(REQUEST, timeout=5.0), asking(cache_response=False), replace(REQUEST, messages=[]))
        tasks = [asyncio.create_task(collect(ring, request)) for request in asked]
        await until(lambda: len(script.requests) == 4)
        gate.set()
        await asyncio.gather(*tasks)


async def test_each_regeneration_is_another_answer(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([gate, *ANSWER])
    async with Cached(script, cache) as ring:
        tasks = [asyncio.create_task(collect(ring, asking(regen_cache=True))) for _ in range(3)]
        await until(lambda: len(script.requests) == 3)
        gate.set()
        await asyncio.gather(*tasks)


async def test_little_is_read_ahead_of_the_fastest_reader(cache: FsCache) -> None:
    script = Script([*(TextDelta("x") for _ in range(10_000)), USAGE, Done()])
    async with Cached(script, cache) as ring, aclosing(ring.stream(REQUEST)) as events:
        for seen in range(1, 300):
            await anext(events)
            await asyncio.sleep(0)
            assert script.sent <= seen + 64


async def test_a_reader_far_behind_fails_alone(cache: FsCache) -> None:
    script = Script([*(TextDelta("x" * 100) for _ in range(1000)), USAGE, Done()])
    async with Cached(script, cache, max_bytes=20_000) as ring:
        slow = ring.stream(REQUEST)
        assert await anext(slow) == TextDelta("x" * 100)
        fast = await collect(ring)
        assert len(text(fast)) == 100_000
        with pytest.raises(CompletionError, match="read too slowly"):
            _ = [event async for event in slow]


async def test_nobody_joins_a_flight_whose_start_is_gone(cache: FsCache) -> None:
    gate = asyncio.Event()
    large: list[Any] = [*(TextDelta("x" * 100) for _ in range(1000)), gate, USAGE, Done()]
    script = Script(large)
    async with Cached(script, cache, max_bytes=20_000) as ring:
        first = asyncio.create_task(collect(ring))
        await until(lambda: script.sent == 1000)
        second = asyncio.create_task(collect(ring))
        await until(lambda: script.sent == 2000)
        gate.set()
        assert [len(text(await task)) for task in (first, second)] == [100_000] * 2
    assert len(script.requests) == 2


async def test_closing_the_ring_ends_what_runs(cache: FsCache) -> None:
    script = Script([TextDelta("Hel"), asyncio.Event()])
    ring = Cached(script, cache)
    task = asyncio.create_task(collect(ring))
    await until(lambda: script.sent == 1)
    await ring.aclose()
    assert script.closed == 1
    with pytest.raises(CompletionError) as caught:
        await task
    assert caught.value.code == "cancelled"


class Gated(FsCache):
    """A folder whose writes wait to be let through."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        self.begun.set()
        await self.gate.wait()
        await super().set(key, value, ttl=ttl)


async def test_closing_the_ring_waits_for_what_is_being_stored(tmp_path: Path) -> None:
    cache = Gated(tmp_path)
    ring = Cached(Script(ANSWER), cache)
    async with aclosing(ring.stream(REQUEST)) as events:
        async for event in events:
            if isinstance(event, Done):
                break
    await cache.begun.wait()
    closing = asyncio.create_task(ring.aclose())
    await asyncio.sleep(0)
    cache.gate.set()
    await closing
    async with Cached(Script(ANSWER), cache) as later:
        assert was_cached(await collect(later))


async def test_who_comes_while_the_answer_is_being_stored_does_not_ask_again(tmp_path: Path) -> None:
    cache = Gated(tmp_path)
    script = Script(ANSWER)
    async with Cached(script, cache) as ring:
        first = asyncio.create_task(collect(ring))
        await cache.begun.wait()
        second = asyncio.create_task(collect(ring))
        await asyncio.sleep(0)
        cache.gate.set()
        assert [await first, await second] == [ANSWER, ANSWER]
    assert len(script.requests) == 1


# A cache that fails


class Broken:
    """A store that is down: it fails, or never answers."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs
        self.calls = 0

    async def _fail(self) -> None:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        raise ConnectionResetError("the cable is out")

    async def get(self, key: str) -> bytes | None:
        await self._fail()
        return None

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        await self._fail()

    async def delete(self, key: str) -> None:
        await self._fail()

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_cache_that_is_down_costs_one_warning_and_no_request(hangs: bool) -> None:
    broken, signals = Broken(hangs), list[Signal]()
    script = Script(ANSWER)
    async with Cached(script, broken, timeout=0.02, hook=signals.append) as ring:
        ring._guard._used = True  # not its very first call, which may take longer
        for _ in range(20):
            assert await collect(ring) == ANSWER
        assert await ring.forget(REQUEST) is False
    assert [signal.name for signal in signals if signal.level == "warning"] == ["cache.unavailable"]
    assert broken.calls == 1, "an outage is asked about once, and then left alone for a while"


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"v":2,"generations":[]}',
        b'{"v":1,"generations":[]}',
        b'{"v":1,"generations":[{}]}',
        b'{"v":1,"generations":[{"created":1,"error":{"code":"x","message":"m"}}]}',
        b'{"v":1,"generations":[{"created":1,"error":{"code":"quota","message":"m","more":1}}]}',
        b'{"v":1,"generations":[{"created":1,"provider":"p","model":"m","response_id":null,"events":'
        b'[{"type":"text_delta","text":7}],"usage":{},"finish_reason":"stop"}]}',
        b'{"v":1,"generations":[{"created":1,"provider":"p","model":"m","response_id":null,"events":'
        b'[{"type":"text_delta","text":"abc","pieces":[1]}],"usage":{},"finish_reason":"stop"}]}',
        b'{"v":1,"generations":[{"created":1,"provider":"p","model":"m","response_id":null,"events":'
        b'[{"type":"done"}],"usage":{},"finish_reason":"stop"}]}',
        b'{"v":1,"generations":[{"created":1,"provider":"p","model":"m","response_id":null,"events":[],'
        b'"usage":{},"finish_reason":"because"}]}',
        b"\xff\xfe",
    ],
)
async def test_what_is_no_entry_is_a_miss_with_a_warning_and_is_replaced(cache: FsCache, stored: bytes) -> None:
    signals: list[Signal] = []
    async with Cached(Script(ANSWER), cache, hook=signals.append) as ring:
        await collect(ring)
        key = next(signal.fields["key"] for signal in signals)
        await cache.set(key, stored)
        assert await collect(ring) == ANSWER
        assert [signal.name for signal in signals if signal.level == "warning"] == ["cache.corrupt"]
        assert was_cached(await collect(ring))


# Warming


async def test_warming_fills_the_cache_and_tells_what_came_of_it(cache: FsCache) -> None:
    script = Script(*([ANSWER] * 3), [CompletionError("quota", "no money")], ANSWER)
    requests = [replace(REQUEST, messages=[{"role": "user", "content": str(n)}]) for n in range(4)]
    async with Cached(script, cache) as ring:
        warmed = await warm_cache(ring, iter(requests), concurrency=1)
        assert (warmed.cached, warmed.completed) == (0, 3)
        assert [(number, error.code) for number, error in warmed.failed] == [(3, "quota")]
        again = await warm_cache(ring, requests)
        assert (again.cached, again.completed, again.failed) == (3, 1, [])


async def test_warming_runs_no_more_at_once_than_was_said(cache: FsCache) -> None:
    gate = asyncio.Event()
    script = Script([gate, *ANSWER])
    requests = [replace(REQUEST, messages=[{"role": "user", "content": str(n)}]) for n in range(20)]
    async with Cached(script, cache) as ring:
        task = asyncio.create_task(warm_cache(ring, requests, concurrency=3))
        await until(lambda: len(script.requests) == 3)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(script.requests) == 3
        gate.set()
        assert (await task).completed == 20
    with pytest.raises(ValidationError, match="concurrency: must be a whole number"):
        await warm_cache(ring, [], concurrency=0)
