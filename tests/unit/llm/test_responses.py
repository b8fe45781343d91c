"""Events of the Responses API: what servers leave out, repeat or break."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltafan.errors import CompletionError
from deltafan.events import Delta, Done, Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm import Started
from deltafan.llm.responses import ResponsesDecoder
from tests.unit.llm.server import KEY, Handler, Hanging, answering, frame, serving
from tests.unit.llm.test_nonstreaming import collect

USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 9,
}
HEAD = {"id": "resp_1", "model": "m-2026", "created_at": 1700000000.0, "status": "in_progress", "output": []}
CREATED = {"type": "response.created", "response": HEAD}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": 0, **fields}


def text(delta: str, **fields: Any) -> dict[str, Any]:
    return event("output_text.delta", delta=delta, **fields)


def ended(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": HEAD | {"status": status, "usage": USAGE} | fields}


def call(**fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": ""} | fields


def decode(*events: dict[str, Any]) -> list[Delta]:
    decoder = ResponsesDecoder()
    return [delta for event in events for delta in decoder.decode(event)]


async def stream(handler: Handler, **request: Any) -> list[Event]:
    async with serving(handler) as base_url:
        return await collect(base_url, streaming=True, api="responses", **request)


async def failure(handler: Handler, **request: Any) -> CompletionError:
    with pytest.raises(CompletionError) as caught:
        await stream(handler, **request)
    assert KEY not in str(caught.value)
    return caught.value


async def test_who_answers_then_deltas_then_usage_then_done() -> None:
    assert await stream(answering(CREATED, text("Hel"), text("lo"), ended())) == [
        Started("openai", "m-2026", request_id="resp_1", created=1700000000, response_id="resp_1"),
        TextDelta("Hel"),
        TextDelta("lo"),
        Usage(7, 2, 9, 3, 1, source="reported"),
        Done("stop"),
    ]


async def test_the_stream_is_over_with_its_last_event() -> None:
    """The connection may stay open: nobody waits for what cannot come."""
    events = await stream(Hanging(CREATED, text("a"), ended()), stall_timeout=60)
    assert events[-1] == Done("stop")


async def test_usage_that_is_not_reported_is_estimated() -> None:
    *_, used, _done = await stream(answering(CREATED, text("Hello"), ended(usage=None)))
    assert used == Usage(6, 2, 8, source="estimated")
    *_, used, _done = await stream(
        answering(CREATED, text("Hello"), ended(usage=None)), messages=[], params={"input": "12345678"}
    )
    assert used == Usage(6, 2, 8, source="estimated")


def test_a_call_is_told_in_openais_order() -> None:
    assert decode(
        event("output_item.added", item=call()),
        event("function_call_arguments.delta", delta='{"a"'),
        event("function_call_arguments.delta", delta=":1}"),
        event("function_call_arguments.done", arguments='{"a":1}'),
        event("output_item.done", item=call(arguments='{"a":1}')),
    ) == [ToolCallDelta(0, "", "call_1", "f"), ToolCallDelta(0, '{"a"'), ToolCallDelta(0, ":1}")]


def test_calls_are_numbered_among_themselves_and_may_be_mixed() -> None:
    second = call(id="fc_2", call_id="call_2", name="g")
    assert decode(
        event("output_item.added", item={"type": "reasoning", "id": "rs_1"}),
        event("output_item.added", item=call(), output_index=1),
        event("output_item.added", item=second, output_index=2),
        event("function_call_arguments.delta", delta="2", output_index=2),
        event("function_call_arguments.delta", delta="1", output_index=1),
    ) == [
        ToolCallDelta(0, "", "call_1", "f"),
        ToolCallDelta(1, "", "call_2", "g"),
        ToolCallDelta(1, "2"),
        ToolCallDelta(0, "1"),
    ]


def test_a_custom_tools_call_is_a_call_with_its_input_as_arguments() -> None:
    item = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "sql", "input": ""}
    assert decode(
        event("output_item.added", item=item),
        event("custom_tool_call_input.delta", delta="SELECT"),
        event("custom_tool_call_input.delta", delta=" 1"),
        event("output_item.done", item=item | {"input": "SELECT 1"}),
    ) == [ToolCallDelta(0, "", "call_1", "sql"), ToolCallDelta(0, "SELECT"), ToolCallDelta(0, " 1")]


@pytest.mark.parametrize(
    "events",
    [
        [event("output_item.done", item=call(arguments="{}"))],
        [event("output_item.added", item=call()), event("function_call_arguments.done", arguments="{}")],
        [event("output_item.added", item=call()), event("output_item.done", item=call(arguments="{}"))],
        [event("output_item.added", item=call(arguments="{}")), event("function_call_arguments.delta", delta="{}")],
        [{"type": "response.output_item.done", "item": call(arguments="{}")}],
        [ended(output=[call(arguments="{}")])],
    ],
)
def test_a_call_without_its_deltas_is_whole_nevertheless(events: list[dict[str, Any]]) -> None:
    deltas = decode(*events)
    assert [(d.call_id, d.name) for d in deltas if isinstance(d, ToolCallDelta) and d.name] == [("call_1", "f")]
    assert "".join(d.arguments for d in deltas if isinstance(d, ToolCallDelta)) == "{}"


MESSAGE = {
    "type": "message",
    "content": [{"type": "output_text", "text": "Hi"}, {"type": "refusal", "refusal": "No."}],
}
REASONING = {
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}],
    "content": [{"type": "reasoning_text", "text": "raw"}],
}


def test_items_without_their_deltas_are_whole_nevertheless() -> None:
    expected = [
        ReasoningDelta("one"),
        ReasoningDelta("\n\ntwo"),
        ReasoningDelta("\n\nraw"),
        TextDelta("Hi"),
        RefusalDelta("No."),
    ]
    done = [event("output_item.done", item=REASONING), event("output_item.done", item=MESSAGE, output_index=1)]
    assert decode(CREATED, *done, ended(output=[REASONING, MESSAGE])) == expected
    assert decode(ended(output=[REASONING, MESSAGE])) == expected
    assert ResponsesDecoder().whole(HEAD | {"status": "completed", "output": [REASONING, MESSAGE]}) == expected


def test_an_item_with_its_deltas_is_not_told_again() -> None:
    assert decode(
        event("reasoning_summary_text.delta", delta="one", summary_index=0),
        event("reasoning_summary_text.delta", delta="t", summary_index=1),
        event("reasoning_summary_text.delta", delta="wo", summary_index=1),
        event("output_item.done", item=REASONING),
        text("Hi", output_index=1),
        event("refusal.delta", delta="No.", output_index=1),
        event("output_item.done", item=MESSAGE, output_index=1),
        ended(output=[REASONING, MESSAGE]),
    ) == [
        ReasoningDelta("one"),
        ReasoningDelta("\n\nt"),
        ReasoningDelta("wo"),
        TextDelta("Hi"),
        RefusalDelta("No."),
    ]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (ended(), "stop"),
        (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (ended("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (ended("incomplete", incomplete_details={"reason": "something new"}), "length"),
        (ended("incomplete"), "length"),
        (ended(output=[call()]), "tool_calls"),
        ({"type": "response.completed", "response": {"output": []}}, "stop"),
    ],
)
def test_every_end_has_a_finish_reason(last: dict[str, Any], reason: str) -> None:
    decoder = ResponsesDecoder()
    decoder.decode(last)
    assert decoder.finished
    assert decoder.finish_reason == reason


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (ended("failed", error={"code": "rate_limit_exceeded", "message": "slow"}), "rate_limit"),
        (ended("failed", error={"code": "server_error", "message": "oops"}), "server_error"),
        (ended("failed", error={"code": "invalid_prompt", "message": "It was flagged."}), "content_filter"),
        (ended("failed", error={"code": "invalid_image_url", "message": "no such image"}), "bad_request"),
        (ended("failed", error={"code": "image_content_policy_violation", "message": "no"}), "content_filter"),
        (ended("failed", error=None), "server_error"),
        (ended("cancelled"), "server_error"),
        ({"type": "error", "code": "insufficient_quota", "message": f"pay: {KEY}"}, "quota"),
        ({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, "bad_request"),
        ({"type": "response.error", "error": {"code": "server_error", "message": "no"}}, "server_error"),
        ({"error": {"message": "too long: maximum context length is 8"}}, "context_length"),
    ],
)
async def test_every_failure_has_its_code(chunk: dict[str, Any], code: str) -> None:
    assert (await failure(answering(CREATED, text("a"), chunk))).code == code
    named = b"event: error\n" + frame(chunk)
    if chunk.get("type") == "error":
        assert (await failure(answering(raw=named))).code == code


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [CREATED],
        [CREATED, text("a")],
        [CREATED, text("a"), b"[DONE]"],
        [CREATED, text("a"), event("output_item.done", item=MESSAGE)],
    ],
)
async def test_a_stream_that_ends_without_its_last_event_has_failed(chunks: list[Any]) -> None:
    assert (await failure(answering(*chunks))).code == "malformed_stream"


@pytest.mark.parametrize(
    "chunk",
    [
        [],
        3,
        text(3),  # type: ignore[arg-type]
        event("output_text.delta"),
        event("function_call_arguments.delta", delta={}),
        event("output_item.added", item=3),
        event("output_item.done"),
        event("output_item.done", item={"type": "message", "content": "text"}),
        event("output_item.done", item={"type": "reasoning", "summary": [3]}),
        {"type": "response.created"},
        {"type": "response.completed", "response": []},
        {"type": "response.completed", "response": {"output": {"a": 1}}},
    ],
)
def test_an_event_of_another_shape_is_malformed(chunk: Any) -> None:
    with pytest.raises(CompletionError) as caught:
        ResponsesDecoder().decode(chunk)
    assert caught.value.code == "malformed_stream"


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"type": 3},
        {"type": []},
        {"type": "response.something.new", "delta": "x"},
        event("output_text.delta", delta=""),
        event("output_item.done", item={}),
        event("output_item.done", item={"type": "web_search_call", "status": "completed"}),
        event("output_item.added", item={"type": "function_call", "name": 3, "call_id": []}, output_index=[]),
    ],
)
def test_what_is_not_known_says_nothing(chunk: Any) -> None:
    assert decode(chunk) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "malformed_stream"),
        ({}, "malformed_stream"),
        ({"status": "completed"}, "malformed_stream"),
        ({"status": "queued", "output": []}, "malformed_stream"),
        ({"status": "completed", "output": [3]}, "malformed_stream"),
        ({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}, "output": []}, "rate_limit"),
        ({"status": "cancelled", "output": []}, "server_error"),
        ({"error": {"code": "insufficient_quota", "message": "m"}}, "quota"),
    ],
)
async def test_a_body_that_is_no_response_has_a_code(body: Any, code: str) -> None:
    raw = json.dumps(body).encode()
    async with serving(answering(raw=raw, content_type="application/json")) as base_url:
        with pytest.raises(CompletionError) as caught:
            await collect(base_url, api="responses")
    assert caught.value.code == code


async def test_time_limits_hold() -> None:
    assert (await failure(Hanging(CREATED), first_token_timeout=0.05)).code == "timeout_first_token"
    assert (await failure(Hanging(CREATED, text("a")), stall_timeout=0.05)).code == "timeout_stall"
    assert (await failure(Hanging(CREATED, text("a")), timeout=0.2)).code == "timeout_total"
