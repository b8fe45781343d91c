from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, ReasoningDelta, TextDelta, Usage
from deltafan.llm import LLMSettings, ProviderSettings, Request, Started
from deltafan.llm.client import OpenAICompletions
from tests.unit.llm.server import (
    HELLO,
    KEY,
    USAGE,
    Handler,
    Hanging,
    answering,
    delta,
    failing,
    frame,
    serving,
    settings,
    text,
)

MESSAGES = [{"role": "user", "content": "hello"}]
REPORTED = Usage(prompt_tokens=7, completion_tokens=2, total_tokens=9, source="reported")
WHOLE = [TextDelta("Hel"), TextDelta("lo"), REPORTED, Done("stop")]


async def collect(completions: OpenAICompletions, **request: Any) -> list[Event]:
    """All events but `Started`, which is always the first."""
    async with aclosing(completions.stream(Request(**{"model": "m", "messages": MESSAGES} | request))) as stream:
        events = [event async for event in stream]
    assert [isinstance(event, Started) for event in events] == [True] + [False] * (len(events) - 1)
    return events[1:]


async def answer(handler: Handler, provider: str = "openai", **request: Any) -> list[Event]:
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url, provider=provider)) as completions:
        return await collect(completions, **request)


async def failure(handler: Handler, provider: str = "openai", **request: Any) -> CompletionError:
    with pytest.raises(CompletionError) as caught:
        await answer(handler, provider, **request)
    assert KEY not in str(caught.value)
    assert caught.value.code in CompletionError.CODES
    assert caught.value.provider == provider
    return caught.value


class Recorder:
    """Answers HELLO and keeps the requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        return await answering(*HELLO)(request)


def cutting(*chunks: Any) -> Handler:
    """Answers with these chunks and then cuts the connection in the middle of the body."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(frame(chunk))
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


async def test_deltas_then_usage_then_done() -> None:
    assert await answer(answering(*HELLO)) == WHOLE


async def test_who_answers_is_told_with_the_first_delta_and_not_before() -> None:
    head = {"id": "chatcmpl-1", "model": "m-2026", "created": 1700000000}
    headers = {"X-Request-Id": "req-7", "x-ratelimit-remaining-requests": "59", "Date": "today"}
    role_only, first = delta(role="assistant", content=""), text("a") | head

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | headers)
        await response.prepare(request)
        await response.write(frame(role_only) + frame(first) + frame(delta("stop")))
        return response

    async with (
        serving(handler) as base_url,
        OpenAICompletions(settings(base_url)) as completions,
        aclosing(completions.stream(Request("m", MESSAGES))) as events,
    ):
        started = await anext(events)
        assert await anext(events) == TextDelta("a")
    assert started == Started(
        provider="openai",
        model="m-2026",
        request_id="req-7",
        created=1700000000,
        response_id="chatcmpl-1",
        rate_limits={"x-ratelimit-remaining-requests": "59"},
    )
    async with (
        serving(answering(role_only)) as base_url,
        OpenAICompletions(settings(base_url)) as completions,
        aclosing(completions.stream(Request("m", MESSAGES))) as events,
    ):
        with pytest.raises(CompletionError):
            await anext(events)


async def test_who_answers_is_told_of_an_empty_answer_too() -> None:
    async with (
        serving(answering(delta("stop"))) as base_url,
        OpenAICompletions(settings(base_url)) as completions,
        aclosing(completions.stream(Request("m", MESSAGES))) as events,
    ):
        assert [type(event) async for event in events] == [Started, Usage, Done]


async def test_the_request_is_what_was_asked_for() -> None:
    recorder = Recorder()
    async with serving(recorder) as base_url, OpenAICompletions(settings(base_url, provider="groq")) as completions:
        await collect(completions, model="groq/llama", params={"temperature": 0.5, "made_up": {"a": 1}, "seed": None})
    assert recorder.bodies == [
        {
            "model": "llama",
            "messages": MESSAGES,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "made_up": {"a": 1},
            "seed": None,
        }
    ]
    assert recorder.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert recorder.headers[0]["Accept-Encoding"] == "identity"


async def test_openais_environment_is_not_sent_to_anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "the-environments-own")
    recorder = Recorder()
    async with (
        serving(recorder) as base_url,
        OpenAICompletions(settings(base_url, provider="ollama", key=None)) as completions,
    ):
        await collect(completions)
    assert "the-environments-own" not in str(recorder.headers)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_bytes_may_be_split_anywhere_and_lines_end_anyhow(size: int, end: bytes) -> None:
    body = b"".join(frame(chunk) for chunk in HELLO).replace(b"\n", end)

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for at in range(0, len(body), size):
            await response.write(body[at : at + size])
        return response

    assert await answer(handler) == WHOLE


@pytest.mark.parametrize(
    "chunks",
    [
        [text("Hello"), delta("stop")],
        [text("Hello"), delta("stop"), b"[DONE]"],
        [text("Hello"), delta("stop"), {"choices": [], "usage": {"prompt_tokens": "many"}}, b"[DONE]"],
    ],
)
async def test_usage_that_is_not_reported_is_estimated(chunks: list[Any]) -> None:
    estimated = Usage(prompt_tokens=6, completion_tokens=2, total_tokens=8, source="estimated")
    assert await answer(answering(*chunks)) == [TextDelta("Hello"), estimated, Done("stop")]


async def test_a_known_model_is_priced_and_a_reported_cost_goes_before_the_list() -> None:
    priced = await answer(answering(*HELLO), model="gpt-4o")
    assert isinstance(priced[-2], Usage)
    assert priced[-2].cost_usd == pytest.approx(7 * 2.5e-6 + 2 * 1e-5)
    chunks = [text("x"), delta("stop"), {"choices": [], "usage": USAGE | {"cost": 0.125}}]
    reported = await answer(answering(*chunks), "openrouter", model="openrouter/openai/gpt-4o")
    assert isinstance(reported[-2], Usage)
    assert reported[-2].cost_usd == 0.125


async def test_nothing_counts_after_the_done_marker() -> None:
    assert await answer(answering(*HELLO, text("ghost"), {"error": {"message": "late"}})) == WHOLE


async def test_the_last_event_counts_without_its_blank_line() -> None:
    body = frame(text("a")) + frame(delta("stop")) + b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode()
    assert await answer(answering(raw=body)) == [TextDelta("a"), REPORTED, Done("stop")]


async def test_a_provider_without_finish_reasons_is_done_at_its_marker() -> None:
    chunks = [text("a"), {"choices": [], "usage": USAGE}, b"[DONE]"]
    assert await answer(answering(*chunks), "snowflake") == [TextDelta("a"), REPORTED, Done("stop")]
    assert (await failure(answering(*chunks[:2]), "snowflake")).code == "malformed_stream"
    assert (await failure(answering(b"[DONE]"), "snowflake")).code == "malformed_stream"


@pytest.mark.parametrize(
    "chunks", [[], [text("a")], [text("a"), b"[DONE]"], [text("a"), {"choices": [], "usage": USAGE}]]
)
async def test_a_stream_that_ends_without_a_finish_reason_has_failed(chunks: list[Any]) -> None:
    error = await failure(answering(*chunks))
    assert error.code == "malformed_stream"
    assert "without a finish reason" in error.message


async def test_a_stream_that_is_cut_has_failed_and_what_came_before_stands() -> None:
    async with (
        serving(cutting(text("Hel"))) as base_url,
        OpenAICompletions(settings(base_url)) as completions,
        aclosing(completions.stream(Request("m", MESSAGES))) as events,
    ):
        assert isinstance(await anext(events), Started)
        assert await anext(events) == TextDelta("Hel")
        with pytest.raises(CompletionError) as caught:
            await anext(events)
        assert caught.value.code == "connection"
        assert caught.value.retryable
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_a_cut_after_the_finish_reason_loses_only_the_usage() -> None:
    events = await answer(cutting(text("Hello"), delta("length")))
    assert [type(event) for event in events] == [TextDelta, Usage, Done]
    assert events[-1] == Done("length")


async def test_a_stall_after_the_finish_reason_loses_only_the_usage() -> None:
    events = await answer(Hanging(text("Hello"), delta("stop")), stall_timeout=0.05)
    assert [type(event) for event in events] == [TextDelta, Usage, Done]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frame(b'{"choices": [{"ind'), "malformed_stream"),
        (frame(b"not json"), "malformed_stream"),
        (frame(text("a")) + b'data: {"choices": [', "malformed_stream"),
        (frame([1, 2]), "malformed_stream"),
        (b"data: " + b"x" * (9 * 1024 * 1024), "malformed_stream"),
        (frame({"error": {"message": "Overloaded", "type": "overloaded_error"}}), "server_error"),
        (frame(text("a")) + frame({"error": {"message": "slow down", "code": 429}}), "rate_limit"),
        (b"event: error\n" + frame({"message": "no credit", "code": "insufficient_quota"}), "quota"),
        (b"event: error\n" + frame({"error": {"message": "no", "type": "invalid_request_error"}}), "bad_request"),
        (b"event: error\ndata: it broke\n\n", "server_error"),
        (frame(text("a")) + frame(delta("error")), "server_error"),
        (frame(text("a")) + frame(delta("stop")) + frame({"error": {"message": "late"}}), "server_error"),
    ],
)
async def test_bad_streams_have_a_code(raw: bytes, code: str) -> None:
    assert (await failure(answering(raw=raw))).code == code


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b'{"error": {"message": "bad key", "code": "invalid_api_key"}}', "application/json", "authentication"),
        (b'{"choices": [{"message": {"content": "hi"}}]}', "application/json", "malformed_stream"),
        (b'{"choices": [', "application/json", "malformed_stream"),
        (b"<html>log in first</html>", "text/html", "malformed_stream"),
    ],
)
async def test_an_answer_that_is_no_stream_has_a_code(body: bytes, content_type: str, code: str) -> None:
    assert (await failure(answering(raw=body, content_type=content_type))).code == code


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}},
            "authentication",
        ),
        (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, "model_not_found"),
        (400, {"error": {"message": "maximum context length is 8192 tokens"}}, "context_length"),
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, "rate_limit"),
        (503, "<html><body>Service Unavailable</body></html>", "server_error"),
    ],
)
async def test_answers_of_failure_are_mapped(status: int, body: Any, code: str) -> None:
    error = await failure(failing(status, body, {"retry-after": "3"}))
    assert (error.code, error.status, error.retry_after) == (code, status, 3.0)
    assert error.model == "m"
    assert "<" not in error.message


async def test_the_sdk_does_not_retry_behind_our_back() -> None:
    requests = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        return await failing(500, {"error": {"message": "no"}})(request)

    await failure(handler)
    assert requests == 1


async def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    async with serving(answering(*HELLO)) as base_url:
        pass
    async with OpenAICompletions(settings(base_url)) as completions:
        with pytest.raises(CompletionError) as caught:
            await collect(completions)
    assert caught.value.code == "connection"
    assert "Cannot connect to host 127.0.0.1" in caught.value.message


async def test_a_server_that_hangs_up_before_it_answers_is_a_connection_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert (await failure(handler)).code == "connection"


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        (b"", "connection"),
        (b"garbage\r\n\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: x", "connection"),
        (CHUNKED + b"\r\n5\r\ndata:", "connection"),
        (CHUNKED + b"\r\nnonsense\r\n", "connection"),
        (CHUNKED + b"Content-Encoding: gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "malformed_stream"),
        (b"HTTP/1.1 302 Found\r\nLocation: /v1/chat/completions\r\nContent-Length: 0\r\n\r\n", "connection"),
    ],
)
async def test_broken_http_has_a_code(bytes_: bytes, code: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes_)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, OpenAICompletions(settings(f"http://{host}:{port}/v1")) as completions:
        with pytest.raises(CompletionError) as caught:
            await collect(completions)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("server", "limits", "code"),
    [
        (lambda: Hanging(headers=False), {"first_token_timeout": 0.05}, "timeout_first_token"),
        (lambda: Hanging(), {"first_token_timeout": 0.05}, "timeout_first_token"),
        (lambda: Hanging(delta(role="assistant", content="")), {"first_token_timeout": 0.05}, "timeout_first_token"),
        (lambda: Hanging(headers=False), {"timeout": 0.05}, "timeout_total"),
        (lambda: Hanging(text("a")), {"timeout": 0.2}, "timeout_total"),
        (lambda: Hanging(text("a")), {"stall_timeout": 0.05, "timeout": 50}, "timeout_stall"),
        (lambda: Hanging(delta(reasoning="r")), {"stall_timeout": 0.05, "first_token_timeout": 50}, "timeout_stall"),
    ],
)
async def test_time_limits_end_the_request_and_close_its_connection(
    server: Any, limits: dict[str, float], code: str
) -> None:
    handler = server()
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        with pytest.raises(CompletionError) as caught:
            await collect(completions, **limits)
        assert caught.value.code == code
        if handler.begun.is_set():  # on a slow machine the limit may have passed before the request got there
            await handler.closed.wait()


async def test_aclose_closes_the_providers_connection() -> None:
    handler = Hanging(text("a"), delta(reasoning="b"))
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        events = completions.stream(Request("m", MESSAGES))
        await anext(events)
        assert await anext(events) == TextDelta("a")
        assert not handler.closed.is_set()
        await events.aclose()
        await handler.closed.wait()


async def test_aclose_in_the_middle_of_a_read_of_many_events_yields_no_more() -> None:
    handler = Hanging(*[text("a")] * 50)
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        async with aclosing(completions.stream(Request("m", MESSAGES))) as events:
            await anext(events)
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        await handler.closed.wait()


@pytest.mark.parametrize("headers", [True, False])
async def test_cancelling_the_task_closes_the_providers_connection(headers: bool) -> None:
    handler = Hanging(text("a"), headers=headers)
    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        task = asyncio.create_task(collect(completions, timeout=50, first_token_timeout=50, stall_timeout=50))
        await handler.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await handler.closed.wait()


async def test_a_connection_is_used_again_though_the_body_ends_after_the_done_marker() -> None:
    peers = []
    done_was_seen = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"".join(frame(chunk) for chunk in HELLO))
        await done_was_seen.wait()
        done_was_seen.clear()
        await response.write_eof()
        return response

    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        for _ in range(2):
            async with aclosing(completions.stream(Request("m", MESSAGES))) as events:
                async for event in events:
                    if isinstance(event, Done):
                        done_was_seen.set()
    assert len(peers) == 2
    assert len(set(peers)) == 1


async def test_many_streams_run_at_once_without_queueing_for_a_connection() -> None:
    count = 150  # more than aiohttp's default of 100
    arrived = 0
    everyone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            everyone.set()
        await everyone.wait()
        return await answering(*HELLO)(request)

    async with serving(handler) as base_url, OpenAICompletions(settings(base_url)) as completions:
        answers = await asyncio.gather(*[collect(completions) for _ in range(count)])
    assert answers == [WHOLE] * count


async def test_one_client_serves_several_providers() -> None:
    recorder = Recorder()
    async with serving(recorder) as base_url:
        providers = {
            "groq": ProviderSettings(base_url=base_url, api_key="groq-key-0123\n"),
            "mine": ProviderSettings(base_url=base_url),
        }
        async with OpenAICompletions(LLMSettings(default_provider="mine", providers=providers)) as completions:
            await collect(completions, model="groq/a")
            await collect(completions, model="b/c")
    assert [body["model"] for body in recorder.bodies] == ["a", "b/c"]
    assert [headers["Authorization"] for headers in recorder.headers] == ["Bearer groq-key-0123", "Bearer none"]


@pytest.mark.parametrize(
    ("model", "override", "code", "says"),
    [
        ("gpt-4o", {}, "authentication", "set OPENAI_API_KEY"),
        ("gemini/g", {}, "authentication", "set GEMINI_API_KEY or GOOGLE_API_KEY"),
        ("azure/g", {"api_key": KEY}, "bad_request", "provider 'azure' has no base_url"),
        ("azure/g", {"base_url": "http://127.0.0.1:9/v1"}, "authentication", "set AZURE_OPENAI_API_KEY"),
        ("openai/g", {"base_url": "not a url", "api_key": KEY}, "bad_request", "base_url"),
        ("openai/g", {"base_url": "ftp://host/v1", "api_key": KEY}, "bad_request", "base_url"),
        ("openai/g", {"base_url": "http://[::bad/v1", "api_key": KEY}, "bad_request", "base_url"),
        ("openai/g", {"base_url": "http://127.0.0.1:9/v1", "api_key": "ключ"}, "bad_request", "cannot be sent"),
    ],
)
async def test_what_is_missing_or_wrong_in_the_settings_is_said(
    model: str, override: dict[str, Any], code: str, says: str
) -> None:
    providers = {model.partition("/")[0]: ProviderSettings(**override)} if override else {}
    async with OpenAICompletions(LLMSettings(providers=providers)) as completions:
        with pytest.raises(CompletionError, match=says) as caught:
            await collect(completions, model=model)
    assert caught.value.code == code
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"params": {"temperature": math.nan}},
        {"params": {"tools": object()}},
    ],
)
async def test_what_json_cannot_carry_is_a_bad_request(request_: dict[str, Any]) -> None:
    assert (await failure(answering(*HELLO), **request_)).code == "bad_request"


async def test_text_to_go_on_from_is_sent_and_only_new_text_comes_back() -> None:
    recorder = Recorder()
    async with serving(recorder) as base_url, OpenAICompletions(settings(base_url, provider="deepseek")) as completions:
        assert (await collect(completions, prefix="Say: "))[0] == TextDelta("Hel")
    assert recorder.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Say: ", "prefix": True}
    assert (await failure(answering(*HELLO), prefix="Say: ")).code == "bad_request"


async def test_reasoning_is_the_first_token_too() -> None:
    events = await answer(answering(delta(reasoning="r"), *HELLO), first_token_timeout=50, stall_timeout=50)
    assert events[:2] == [ReasoningDelta("r"), TextDelta("Hel")]
