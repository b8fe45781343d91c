"""Embeddings: batches, order, both forms of numbers, and failures as those of completions."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from deltafan.devserver.provider import Script, parse_faults, running
from deltafan.devserver.provider.embeddings import vector
from deltafan.errors import CompletionError
from deltafan.events import Usage
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.embeddings import EmbeddingRequest, EmbeddingResult, embed
from tests.unit.llm.server import KEY, answering, failing, serving, settings

SMALL = "text-embedding-3-small"


class Asked:
    """An embedder that notes its requests; the vector of a text is its length."""

    def __init__(self, *, fails_at: str | None = None) -> None:
        self.requests: list[EmbeddingRequest] = []
        self.running = self.most = 0
        self._fails_at = fails_at

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(1 + len(self.requests) % 3):  # the requests end in another order than they began
                await asyncio.sleep(0)
            if self._fails_at in request.inputs:
                raise CompletionError("rate_limit", "slow down")
            count = len(request.inputs)
            vectors = [[float(len(item))] for item in request.inputs]
            return EmbeddingResult(vectors, Usage(count, 0, count, 0, 0, 0.5, source="reported"), "p", request.model)
        finally:
            self.running -= 1


def lengths(asked: Asked) -> list[int]:
    return [len(request.inputs) for request in asked.requests]


async def body_answered(body: Any, inputs: list[str], raw: bytes | None = None) -> EmbeddingResult:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    async with (
        serving(answering(raw=raw, content_type="application/json") if raw is not None else handler) as base_url,
        OpenAICompletions(settings(base_url)) as client,
    ):
        return await client.embed(EmbeddingRequest(SMALL, inputs))


async def test_vectors_come_in_order_with_usage_and_cost() -> None:
    async with running(Script()) as provider, OpenAICompletions(settings(provider.base_url)) as client:
        result = await embed(client, ["a b", "c", "a b"], SMALL, dimensions=8)
    expected = [vector(text, 8).tolist() for text in ("a b", "c", "a b")]
    assert result.vectors == expected
    assert (result.provider, result.model, result.request_id) == ("openai", SMALL, provider.requests[0].id)
    assert result.usage.prompt_tokens == result.usage.total_tokens == 5
    assert (result.usage.completion_tokens, result.usage.source) == (0, "reported")
    assert result.usage.cost_usd == pytest.approx(5 * 0.02e-6)
    assert provider.requests[0].params == {"model": SMALL, "encoding_format": "base64", "dimensions": 8}


async def test_one_text_and_the_tokens_of_one_are_one_input() -> None:
    asked = Asked()
    assert (await embed(asked, "abc", "m")).vectors == [[3.0]]
    assert (await embed(asked, [1, 2], "m")).vectors == [[2.0]]
    assert (await embed(asked, [[1], [2, 3]], "m")).vectors == [[1.0], [2.0]]
    assert [list(request.inputs) for request in asked.requests] == [["abc"], [[1, 2]], [[1], [2, 3]]]


async def test_no_inputs_ask_nobody() -> None:
    asked = Asked()
    assert (await embed(asked, [], "m")).vectors == []
    assert asked.requests == []


@pytest.mark.parametrize("inputs", [3, None, ["a", 3], ["a", []], [["a"]], ["a", None], [True]])
async def test_what_is_neither_text_nor_tokens_is_named(inputs: Any) -> None:
    with pytest.raises(CompletionError, match=r"^input") as caught:
        await embed(Asked(), inputs, "m")
    assert caught.value.code == "bad_request"


async def test_requests_hold_no_more_inputs_than_the_provider_takes() -> None:
    async with running(Script()) as provider, OpenAICompletions(settings(provider.base_url)) as client:
        texts = [f"text {number}" for number in range(4100)]
        result = await embed(client, texts, "m", dimensions=2, count_tokens=lambda text: 2)
    assert result.vectors == [vector(text, 2).tolist() for text in texts]
    assert result.usage.prompt_tokens == 8200
    assert sorted(record.status or 0 for record in provider.requests) == [200, 200, 200]


async def test_requests_hold_no_more_tokens_than_the_provider_takes() -> None:
    asked = Asked()
    await embed(asked, ["a", "bb", "ccc", "dddd", "e"], "m", count_tokens=len, max_tokens=5)
    assert [list(request.inputs) for request in asked.requests] == [["a", "bb"], ["ccc"], ["dddd", "e"]]
    asked = Asked()
    await embed(asked, ["é" * 3, "é" * 2, [1] * 6, [2]], "m", max_tokens=9)  # uncounted, a byte is a token
    assert lengths(asked) == [1, 1, 2]


async def test_an_input_that_is_too_long_alone_goes_alone() -> None:
    asked = Asked()
    await embed(asked, ["a", "bbbbbb", "c"], "m", count_tokens=len, max_tokens=5)
    assert lengths(asked) == [1, 1, 1]


@given(
    texts=st.lists(st.text(max_size=5), max_size=30),
    max_inputs=st.integers(1, 5),
    max_tokens=st.integers(1, 12),
    concurrency=st.integers(1, 3),
)
def test_any_split_keeps_order_limits_and_sums(
    texts: list[str], max_inputs: int, max_tokens: int, concurrency: int
) -> None:
    asked = Asked()

    async def run() -> EmbeddingResult:
        return await embed(
            asked,
            texts,
            "m",
            count_tokens=len,
            max_inputs=max_inputs,
            max_tokens=max_tokens,
            concurrency=concurrency,
        )

    result = asyncio.run(run())
    assert result.vectors == [[float(len(text))] for text in texts]
    assert result.usage.prompt_tokens == len(texts)
    assert asked.most <= concurrency
    for request in asked.requests:
        assert len(request.inputs) <= max_inputs
        assert len(request.inputs) == 1 or sum(map(len, request.inputs)) <= max_tokens


async def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    asked = Asked(fails_at="b")
    with pytest.raises(CompletionError) as caught:
        await embed(asked, list("abcdefgh"), "m", max_inputs=1, concurrency=2)
    assert caught.value.code == "rate_limit"
    assert asked.running == 0
    assert len(asked.requests) < 8


async def test_numbers_instead_of_base64_are_taken_and_so_is_any_order() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2)).decode()
    body = {"data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1, 0.25]}]}
    result = await body_answered(body, ["a", "b"])
    assert result.vectors == [[1.0, 0.25], [0.5, -2.0]]
    assert all(type(number) is float for numbers in result.vectors for number in numbers)
    assert result.usage == Usage(1, 0, 1, 0, 0, result.usage.cost_usd, source="estimated")


async def test_a_large_answer_is_read_in_a_thread_and_is_the_same() -> None:
    async with running(Script()) as provider, OpenAICompletions(settings(provider.base_url)) as client:
        result = await embed(client, [f"t{n}" for n in range(100)], "m", dimensions=3000)
    assert result.vectors == [vector(f"t{n}", 3000).tolist() for n in range(100)]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"data": []},
        {"data": [{"embedding": [1]}, {"embedding": [1]}]},
        {"data": [{"embedding": "AAAA"}]},
        {"data": [{"embedding": "not base64!"}]},
        {"data": [{"embedding": "!AAAAAA=="}]},
        {"data": [{"embedding": [1, "a"]}]},
        {"data": [{"embedding": None}]},
        {"data": [3]},
        {"data": [{"index": 7, "embedding": [1]}]},
        {"data": [{"index": "0", "embedding": [1]}]},
    ],
)
async def test_an_answer_of_another_shape_is_malformed(body: Any) -> None:
    with pytest.raises(CompletionError) as caught:
        await body_answered(body, ["a"])
    assert caught.value.code == "malformed_stream"


async def test_an_answer_that_is_no_json_is_malformed() -> None:
    with pytest.raises(CompletionError) as caught:
        await body_answered(None, ["a"], raw=b"<html>")
    assert caught.value.code == "malformed_stream"


async def test_an_error_in_an_answer_is_that_error() -> None:
    with pytest.raises(CompletionError) as caught:
        await body_answered({"error": {"message": "no credit", "code": "insufficient_quota"}}, ["a"])
    assert caught.value.code == "quota"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("rate_limit=3", "rate_limit"),
        ("authentication", "authentication"),
        ("model_not_found", "model_not_found"),
        ("server_error", "server_error"),
        ("context_length", "context_length"),
        ("cut", "connection"),
        ("close", "malformed_stream"),
        ("error", "server_error"),
    ],
)
async def test_failures_are_those_of_completions(fault: str, code: str) -> None:
    async with (
        running(Script(faults=parse_faults(fault))) as provider,
        OpenAICompletions(settings(provider.base_url)) as client,
    ):
        with pytest.raises(CompletionError) as caught:
            await embed(client, "a", "openai/m")
    assert (caught.value.code, caught.value.provider, caught.value.model) == (code, "openai", "m")
    assert caught.value.retry_after == (3.0 if code == "rate_limit" else None)


async def test_a_key_in_an_error_is_not_shown() -> None:
    async with (
        serving(failing(401, {"error": {"message": f"bad key {KEY}"}})) as base_url,
        OpenAICompletions(settings(base_url)) as client,
    ):
        with pytest.raises(CompletionError) as caught:
            await client.embed(EmbeddingRequest("m", ["a"]))
    assert KEY not in str(caught.value)


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    async with (
        running(Script(faults=parse_faults("stall"))) as provider,
        OpenAICompletions(settings(provider.base_url)) as client,
    ):
        with pytest.raises(CompletionError) as caught:
            await embed(client, "a", "m", timeout=0.05)
        assert caught.value.code == "timeout_total"
        await provider.until(lambda records: all(record.client_closed for record in records))


async def test_other_parameters_are_sent_as_they_are() -> None:
    async with running(Script()) as provider, OpenAICompletions(settings(provider.base_url)) as client:
        await embed(client, "a", "m", params={"user": "u", "input_type": "query", "encoding_format": "float"})
    assert provider.requests[0].params == {
        "model": "m",
        "encoding_format": "base64",
        "user": "u",
        "input_type": "query",
    }
