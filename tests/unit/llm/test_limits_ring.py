"""The ring: what it reserves, what it gives back, and what it learns, before real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, TextDelta, Usage
from deltafan.llm import Request
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.embeddings import EmbeddingRequest
from deltafan.llm.limits import Budget, Limited, LimitedEmbedder, Limiter, TokenBucket
from deltafan.llm.limits.estimate import DEFAULT_OUTPUT, embedding_tokens, max_output, prompt_tokens
from tests.unit.llm.server import HELLO, KEY, Handler, Hanging, answering, failing, frame, serving, settings

MESSAGES = [{"role": "user", "content": "hello"}]
BUDGET = Budget(requests=3, tokens=100)
MODEL = "openai/m"


class Ring:
    """A limited client of one server."""

    def __init__(self, limited: Limited, limiter: Limiter) -> None:
        self.limited = limited
        self.bucket: TokenBucket = limiter.bucket(MODEL, KEY)

    async def collect(self, **request: Any) -> list[Event]:
        given = {"model": "m", "messages": MESSAGES, "prompt_tokens": 20, "params": {"max_tokens": 30}} | request
        async with aclosing(self.limited.stream(Request(**given))) as events:
            return [event async for event in events]

    async def used(self) -> tuple[int, int]:
        """Tokens and requests that count, as the limit itself says them."""
        async with asyncio.timeout(10):
            while self.bucket.statistics().open:
                await asyncio.sleep(0)
        used = self.bucket._store._window.used(self.bucket._store._now())  # type: ignore[attr-defined]
        return used.tokens, used.requests


@asynccontextmanager
async def limited(handler: Handler, budget: Budget = BUDGET) -> AsyncIterator[Ring]:
    limiter = Limiter(budget, max_wait=0.05)
    async with serving(handler) as base_url:
        given = settings(base_url)
        async with OpenAICompletions(given) as client:
            yield Ring(Limited(client, limiter, given), limiter)


async def failure(ring: Ring, **request: Any) -> CompletionError:
    with pytest.raises(CompletionError) as caught:
        await ring.collect(**request)
    return caught.value


async def test_the_reported_usage_settles_the_reservation() -> None:
    async with limited(answering(*HELLO)) as ring:
        events = await ring.collect()
        assert [type(event) for event in events[1:]] == [TextDelta, TextDelta, Usage, Done]
        usage = next(event for event in events if isinstance(event, Usage))
        assert await ring.used() == (usage.total_tokens, 1)


async def test_more_than_the_budget_by_its_own_maximum_is_refused_before_it_is_sent() -> None:
    async with limited(answering(*HELLO)) as ring:
        error = await failure(ring, params={"max_tokens": 81})
        assert (error.code, error.provider, error.model) == ("bad_request", "openai", "m")
        assert "101 tokens" in str(error)


async def test_waiting_for_budget_counts_against_the_requests_timeout() -> None:
    async with limited(answering(*HELLO)) as ring:
        async with ring.bucket.limit(100):
            error = await failure(ring, timeout=0.02)
        assert error.code == "timeout_total"
        assert "no budget within 0.02 s" in str(error)


async def test_what_is_left_of_the_timeout_goes_to_the_transport() -> None:
    asked: list[Request] = []

    class Transport:
        async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            asked.append(request)
            yield Done("stop")

    limiter = Limiter(BUDGET)
    ring = Ring(Limited(Transport(), limiter, settings("http://127.0.0.1")), limiter)
    async with ring.bucket.limit(100) as slot:
        task = asyncio.create_task(ring.collect(timeout=60))
        async with asyncio.timeout(10):
            while not ring.bucket.statistics().waiting:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        slot.refund()
    async with asyncio.timeout(10):
        await task
    assert asked[0].timeout is not None
    assert 0 < asked[0].timeout <= 59.95


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_retry_after_pauses_all_requests_to_the_model(status: int) -> None:
    async with limited(failing(status, {"error": {"message": "slow down"}}, headers={"Retry-After": "30"})) as ring:
        assert (await failure(ring)).status == status
        error = await failure(ring)
        assert error.code == "rate_limit"
        assert "asked for a pause" in str(error) or "no budget within" in str(error)
        assert (error.retry_after or 0) > 25


async def test_a_failure_that_the_provider_may_have_counted_stays_spent() -> None:
    async with limited(failing(500, {"error": {"message": "oh"}})) as ring:
        await failure(ring)
        assert await ring.used() == (50, 1)


async def test_a_request_that_was_never_sent_costs_nothing() -> None:
    async with limited(answering(*HELLO)) as ring:
        error = await failure(ring, params={"max_tokens": 30, "temperature": float("nan")})
        assert (error.code, error.status) == ("bad_request", None)
        assert await ring.used() == (0, 0)


async def test_a_cancelled_completion_closes_its_connection_and_its_slot() -> None:
    hanging = Hanging()
    async with limited(hanging) as ring:
        task = asyncio.create_task(ring.collect())
        async with asyncio.timeout(10):
            while not ring.bucket.statistics().open:
                await asyncio.sleep(0)
            await hanging.begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await hanging.closed.wait()
        assert await ring.used() == (50, 1)


async def test_the_headers_of_an_answer_are_learned() -> None:
    headers = {"x-ratelimit-limit-tokens": "60", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "40s"}

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        body = b"".join(map(frame, HELLO))
        return web.Response(body=body, headers={"Content-Type": "text/event-stream", **headers})

    async with limited(handler) as ring:
        await ring.collect()
        error = await failure(ring)
        assert "60 tokens" in str(error)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, DEFAULT_OUTPUT),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 2}, 2 * DEFAULT_OUTPUT),
        ({"max_tokens": "many"}, DEFAULT_OUTPUT),
        ({"max_tokens": -1}, DEFAULT_OUTPUT),
        ({"max_tokens": 10**30, "n": 10**30}, 2**40),
    ],
)
def test_what_is_reserved_for_the_output(params: dict[str, Any], tokens: int) -> None:
    assert max_output(Request("m", MESSAGES, params)) == tokens


def test_what_is_reserved_for_the_prompt() -> None:
    assert prompt_tokens(Request("m", MESSAGES, prompt_tokens=77)) == 77
    assert 0 < prompt_tokens(Request("m", MESSAGES)) < 20
    assert prompt_tokens(Request("m", [{"role": "user", "content": "x" * 4000}])) > 900
    assert prompt_tokens(Request("m", [], {"input": "x" * 4000}, api="responses")) > 900
    assert prompt_tokens(Request("m", [], {"input": [{"role": "user", "content": "x" * 4000}]}, api="responses")) > 900
    assert prompt_tokens(Request("m", MESSAGES, prefix="x" * 4000)) > 900
    assert prompt_tokens(Request("m", [], {"input": 7}, api="responses")) == 0
    assert prompt_tokens(Request("m", ["hello", {"role": "user", "content": 7}])) < 20  # type: ignore[list-item]
    assert embedding_tokens(["x" * 4000, [1, 2, 3], ""]) == 1003


async def test_embeddings_take_from_the_same_budget() -> None:
    headers = {"x-ratelimit-limit-tokens": "90"}
    body = {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(body, headers=headers)

    limiter = Limiter(BUDGET, max_wait=0.02)
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as client:
        embedder = LimitedEmbedder(client, limiter, settings(base_url))
        result = await embedder.embed(EmbeddingRequest("m", ["x" * 200], timeout=10))
        assert result.vectors == [[1.0]]
        async with limiter.limit(81, model=MODEL, key=KEY) as slot:
            with pytest.raises(CompletionError) as waited:
                await embedder.embed(EmbeddingRequest("m", ["x"]))
            slot.refund()
        with pytest.raises(CompletionError) as refused:
            await embedder.embed(EmbeddingRequest("m", ["x" * 400]))
    assert (waited.value.code, waited.value.model) == ("rate_limit", "m")
    assert refused.value.code == "bad_request"
    assert "90 tokens" in str(refused.value)


async def test_an_embedding_that_failed_pauses_the_model() -> None:
    failed = failing(429, {"error": {"message": "slow down"}}, headers={"Retry-After": "30"})
    async with serving(failed) as base_url, OpenAICompletions(settings(base_url)) as client:
        embedder = LimitedEmbedder(client, Limiter(BUDGET, max_wait=0.02), settings(base_url))
        for _ in range(2):
            with pytest.raises(CompletionError) as caught:
                await embedder.embed(EmbeddingRequest("m", ["x"]))
    assert caught.value.status is None
    assert "asked for a pause" in str(caught.value)
