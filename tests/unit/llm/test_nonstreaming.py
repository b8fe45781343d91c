"""Answers that are not streamed: the same events in the same order, the same errors, the same time limits."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from deltafan.devserver.provider import Script, Text, ToolCall, parse_faults, running
from deltafan.errors import CompletionError
from deltafan.events import Done, Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm import Request, Retrying, Started, pricing
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.settings import ModelSettings
from deltafan.transcript import Transcript
from tests.unit.llm.server import HELLO, KEY, USAGE, Handler, answering, failing, serving, settings

MESSAGES = [{"role": "user", "content": "hello"}]
APIS = pytest.mark.parametrize("api", ["chat", "responses"])
SCRIPT = Script(
    source=Text("Grüße, 👋"), reasoning="Let me think.", tool_calls=(ToolCall("f", '{"a":1}'), ToolCall("g", "{}"))
)


async def collect(base_url: str, provider: str = "openai", **request: Any) -> list[Event]:
    asked = Request(**{"model": "m", "messages": MESSAGES, "streaming": False} | request)
    async with (
        OpenAICompletions(settings(base_url, provider=provider)) as completions,
        aclosing(completions.stream(asked)) as events,
    ):
        return [event async for event in events]


async def answer(body: Any, provider: str = "openai", **request: Any) -> list[Event]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with serving(answering(raw=raw, content_type="application/json")) as base_url:
        started, *events = await collect(base_url, provider, **request)
    assert isinstance(started, Started)
    return events


async def failure(handler: Handler, **request: Any) -> CompletionError:
    async with serving(handler) as base_url:
        with pytest.raises(CompletionError) as caught:
            await collect(base_url, **request)
    assert KEY not in str(caught.value)
    return caught.value


def completion(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    finish = more.pop("finish_reason", "stop")
    choices = [{"index": i, "message": m, "finish_reason": finish} for i, m in enumerate(messages)]
    return {"id": "c-1", "model": "m-2026", "created": 1700000000, "choices": choices, "usage": USAGE} | more


async def test_a_completion_is_told_in_the_order_of_a_stream() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    other = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    message = {
        "role": "assistant",
        "tool_calls": [call, other],
        "refusal": "Not that.",
        "content": "Hello",
        "reasoning_content": "Hm.",
    }
    assert await answer(completion(message, finish_reason="tool_calls")) == [
        ReasoningDelta("Hm."),
        TextDelta("Hello"),
        RefusalDelta("Not that."),
        ToolCallDelta(0, '{"a":1}', "call_1", "f"),
        ToolCallDelta(1, "{}", "call_2", "g"),
        Usage(7, 2, 9, source="reported"),
        Done("tool_calls"),
    ]


async def test_every_choice_is_told() -> None:
    events = await answer(completion({"content": "a"}, {"content": "b"}))
    assert events[:2] == [TextDelta("a"), TextDelta("b", choice=1)]


async def test_the_request_asks_for_no_stream() -> None:
    bodies = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return web.json_response(completion({"content": "a"}))

    async with serving(handler) as base_url:
        await collect(base_url, params={"stream_options": {"include_usage": True}, "temperature": 1})
    assert bodies == [{"model": "m", "messages": MESSAGES, "stream": False, "temperature": 1}]


async def test_usage_that_is_not_reported_is_estimated() -> None:
    *_, used, done = await answer(completion({"content": "Hello"}, usage=None))
    assert used == Usage(6, 2, 8, source="estimated")
    assert done == Done("stop")


async def test_a_finish_reason_may_be_missing_of_what_is_whole() -> None:
    assert (await answer(completion({"content": "a"}, finish_reason=None)))[-1] == Done("stop")


@APIS
async def test_the_events_amount_to_those_of_the_stream(api: str) -> None:
    async with running(SCRIPT) as provider:
        streamed = await collect(provider.base_url, api=api, streaming=True)
        whole = await collect(provider.base_url, api=api)
    first, second = Transcript(), Transcript()
    for transcript, events in ((first, streamed), (second, whole)):
        assert isinstance(events[0], Started)
        for event in events:
            transcript.add(event)
        for call in transcript.tool_calls:
            assert call.id is not None
            call.id = None  # it is another in every answer
    assert first == second
    assert first.text == "Grüße, 👋"
    assert first.reasoning == "Let me think."
    assert [(call.name, call.arguments) for call in first.tool_calls] == [("f", '{"a":1}'), ("g", "{}")]
    assert first.done == Done("tool_calls")
    assert first.usage is not None
    assert first.usage.source == "reported"
    assert [type(event) for event in whole[:3]] == [Started, ReasoningDelta, TextDelta]


@APIS
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("rate_limit", "rate_limit"),
        ("quota", "quota"),
        ("server_error=503", "server_error"),
        ("authentication", "authentication"),
        ("permission", "permission"),
        ("model_not_found", "model_not_found"),
        ("context_length", "context_length"),
        ("bad_request", "bad_request"),
        ("cut=2", "connection"),
        ("close=2", "malformed_stream"),
        ("malformed=2", "malformed_stream"),
        ("error=2", "server_error"),
    ],
)
async def test_every_fault_has_the_code_that_it_has_in_a_stream(
    fault: str, code: str, streaming: bool, api: str
) -> None:
    async with running(Script(faults=parse_faults(fault))) as provider:
        with pytest.raises(CompletionError) as caught:
            await collect(provider.base_url, api=api, streaming=streaming)
    assert (caught.value.code, caught.value.provider, caught.value.model) == (code, "openai", "m")


@APIS
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("params", "answered"), [({"service_tier": "flex"}, {}), ({}, {"service_tier": "flex"})])
async def test_the_price_is_that_of_the_service_tier(
    params: dict[str, Any], answered: dict[str, Any], streaming: bool, api: str
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
    if api == "responses":
        item = {"type": "message", "content": [{"type": "output_text", "text": "a"}]}
        body = {"status": "completed", "output": [item], "usage": usage} | answered
        chunks = [{"type": "response.completed", "response": body}]
    else:
        body = completion({"content": "a"}, usage=usage) | answered
        delta = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
        chunks = [{"choices": [delta], "usage": usage} | answered, b"[DONE]"]
    whole = answering(raw=json.dumps(body).encode(), content_type="application/json")
    async with serving(answering(*chunks) if streaming else whole) as base_url:
        *_, used, _done = await collect(base_url, api=api, streaming=streaming, model="gpt-5", params=params)
    standard, flex = (
        pricing.cost_usd("openai", "gpt-5", Usage(1000, 1000, 2000), service_tier=tier) for tier in (None, "flex")
    )
    assert isinstance(used, Usage)
    assert used.cost_usd == flex != standard


async def test_the_price_is_that_of_the_settings() -> None:
    async with running(Script(source=Text("Hi"))) as provider:
        known = settings(provider.base_url, models={"openai/m": ModelSettings(input_price=1, output_price=1)})
        async with OpenAICompletions(known) as client, aclosing(client.stream(Request("m", MESSAGES))) as events:
            *_, used, _done = [event async for event in events]
    assert isinstance(used, Usage)
    assert used.cost_usd == pytest.approx((used.total_tokens or 0) * 1e-6)


@APIS
async def test_filtered_content_is_a_finish_reason(api: str) -> None:
    async with running(Script(faults=parse_faults("content_filter=2"))) as provider:
        assert (await collect(provider.base_url, api=api))[-1] == Done("content_filter")


@APIS
async def test_length_is_a_finish_reason(api: str) -> None:
    async with running(Script()) as provider:
        assert (await collect(provider.base_url, api=api, params={"max_tokens": 3}))[-1] == Done("length")


@APIS
@pytest.mark.parametrize("streaming", [True, False])
async def test_what_fails_before_anything_is_seen_is_tried_again(api: str, streaming: bool) -> None:
    async with (
        running(Script(source=Text("Hi"), faults=parse_faults("server_error*2"))) as provider,
        OpenAICompletions(settings(provider.base_url)) as client,
        aclosing(
            Retrying(client, backoff=0.001).stream(Request("m", MESSAGES, api=api, streaming=streaming))  # type: ignore[arg-type]
        ) as events,
    ):
        got = [event async for event in events]
    assert [type(event) for event in got] == [Started, TextDelta, Usage, Done]
    assert len(provider.requests) == 3


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed_stream"),
        (b"   ", "malformed_stream"),
        (b"<html>log in first</html>", "malformed_stream"),
        (b'{"choices": [', "malformed_stream"),
        (b'{"choices": []}', "malformed_stream"),
        (b'{"choices": "a"}', "malformed_stream"),
        (b'{"choices": [3]}', "malformed_stream"),
        (b'{"choices": [{"message": 3}]}', "malformed_stream"),
        (b'{"choices": [{"message": {"content": 3}}]}', "malformed_stream"),
        (b"[]", "malformed_stream"),
        (b'{"error": {"message": "no credit", "code": "insufficient_quota"}}', "quota"),
        (b'{"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}', "server_error"),
    ],
)
async def test_a_body_that_is_no_completion_has_a_code(raw: bytes, code: str) -> None:
    assert (await failure(answering(raw=raw, content_type="application/json"))).code == code


async def test_a_stream_instead_of_the_one_answer_is_malformed() -> None:
    assert (await failure(answering(*HELLO))).code == "malformed_stream"


async def test_an_answer_of_failure_is_mapped() -> None:
    error = await failure(failing(429, {"error": {"message": "slow"}}, {"retry-after": "3"}))
    assert (error.code, error.status, error.retry_after) == ("rate_limit", 429, 3.0)


class Dripping:
    """Sends the headers, then these bytes, and then holds the connection until the client closes it."""

    def __init__(self, data: bytes) -> None:
        self.closed = asyncio.Event()
        self.begun = asyncio.Event()
        self._data = data

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await request.read()
            await response.prepare(request)
            await response.write(self._data)
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()
        return response


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (b"", {"first_token_timeout": 0.05}, "timeout_first_token"),
        (b"\n\n", {"stall_timeout": 0.02, "first_token_timeout": 0.5}, "timeout_first_token"),
        (b'{"choices"', {"stall_timeout": 0.05, "first_token_timeout": 50}, "timeout_stall"),
        (b'{"choices"', {"timeout": 0.1}, "timeout_total"),
    ],
)
async def test_time_limits_hold_until_the_answer_begins_and_while_it_comes(
    data: bytes, limits: dict[str, float], code: str
) -> None:
    handler = Dripping(data)
    async with serving(handler) as base_url:
        with pytest.raises(CompletionError) as caught:
            await collect(base_url, **limits)
        assert caught.value.code == code
        if handler.begun.is_set():
            await handler.closed.wait()


async def test_cancelling_closes_the_providers_connection() -> None:
    handler = Dripping(b'{"choices"')
    async with serving(handler) as base_url:
        task = asyncio.create_task(collect(base_url))
        await handler.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await handler.closed.wait()


async def test_who_answers_is_told_first() -> None:
    async with (
        running(Script(source=Text("Hi"))) as provider,
        OpenAICompletions(settings(provider.base_url)) as client,
        aclosing(client.stream(Request("m", MESSAGES, streaming=False))) as events,
    ):
        started = await anext(events)
    assert isinstance(started, Started)
    assert (started.provider, started.model) == ("openai", "m")
    assert started.request_id == started.response_id == provider.requests[0].id
    assert started.created > 0
