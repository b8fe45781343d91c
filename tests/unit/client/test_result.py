"""What a result says of several choices, and of several turns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from deltafan import wire
from deltafan.client import OpenAIClient, litellm
from deltafan.client.result import Collector
from deltafan.devserver.provider import Provider
from deltafan.errors import ValidationError
from deltafan.events import Done, EventId, Meta, TextDelta, ToolCallDelta, ToolResult, Usage
from deltafan.llm.seam import Ended, Started
from deltafan.llm.tools import tool

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@asynccontextmanager
async def answering(*answers: Sequence[dict[str, Any]]) -> AsyncIterator[str]:
    """The address of a provider that gives these choices, one answer after another; streamed, if it is asked to."""
    left = list(answers)

    async def answer(request: web.Request) -> web.Response:
        asked, choices = await request.json(), left.pop(0)
        if not asked.get("stream"):
            return web.json_response({"id": "a", "choices": choices, "usage": USAGE})
        deltas = [
            {"choices": [{"index": choice["index"], "delta": choice["message"], "finish_reason": None}]}
            for choice in choices
        ]
        ends = [
            {"choices": [{"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}]}
            for choice in choices
        ]
        frames = [*deltas, *ends, {"choices": [], "usage": USAGE}]
        text = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def choice(index: int, reason: str, text: str | None, **more: Any) -> dict[str, Any]:
    return {"index": index, "finish_reason": reason, "message": {"role": "assistant", "content": text, **more}}


def call(name: str, call_id: str) -> dict[str, Any]:
    return {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


CHOICES = [choice(0, "stop", "a"), choice(1, "length", "b"), choice(2, "content_filter", None)]
REASONS = ["stop", "length", "content_filter"]


@pytest.fixture(autouse=True)
def key(use: Callable[[Provider], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


@pytest.mark.parametrize("stream", [False, True])
async def test_each_choice_keeps_its_own_finish_reason(stream: bool) -> None:
    async with answering(CHOICES) as url, OpenAIClient("gpt-5-mini", base_url=url) as client:
        result = await client.invoke("Hi", n=3, stream=stream)
    assert [one.finish_reason for one in result.choices] == REASONS
    assert result.finish_reason == "stop"


async def test_litellms_answers_and_chunks_have_each_choices_own() -> None:
    async with answering(CHOICES, CHOICES) as url:
        answer = await litellm.acompletion("openai/gpt-5-mini", "Hi", n=3, api_base=url)
        stream = await litellm.acompletion("openai/gpt-5-mini", "Hi", n=3, api_base=url, stream=True)
        ends = {one.index: one.finish_reason async for chunk in stream for one in chunk.choices if one.finish_reason}
    assert [one.finish_reason for one in answer.choices] == REASONS
    assert ends == dict(enumerate(REASONS))


def test_the_wire_knows_one_finish_reason() -> None:
    plain, several = Done("stop"), Ended("stop", finish_reasons={0: "stop", 1: "length"})
    assert wire.encode("0-a", EventId(1, 0), several) == wire.encode("0-a", EventId(1, 0), plain)


@tool
def look() -> str:
    """Look."""
    return "blue"


class Final(BaseModel):
    final: int


@pytest.mark.parametrize("stream", [False, True])
async def test_with_tools_a_result_is_the_last_turn(stream: bool) -> None:
    turns = [
        [choice(0, "tool_calls", "Thinking. ", tool_calls=[call("look", "c1")])],
        [choice(0, "tool_calls", "Again. ", tool_calls=[call("look", "c1")])],
        [choice(0, "stop", '{"final":1}')],
    ]
    async with answering(*turns) as url, OpenAIClient("gpt-5-mini", base_url=url, tools=[look]) as client:
        result = await client.invoke("Hi", response_format=Final, stream=stream)
    assert Final.model_validate_json(result.text) == Final(final=1)
    assert (result.choices[0].text, result.tool_calls) == (result.text, ())
    assert [given.result for given in result.tool_results] == ["blue", "blue"]


async def test_the_calls_of_a_result_are_those_that_nobody_has_answered() -> None:
    theirs = {"type": "function", "function": {"name": "ask", "parameters": {"type": "object", "properties": {}}}}
    turn = choice(0, "tool_calls", "Both. ", tool_calls=[call("look", "c1"), call("ask", "c2") | {"index": 1}])
    async with answering([turn]) as url, OpenAIClient("gpt-5-mini", base_url=url, tools=[look]) as client:
        result = await client.invoke("Hi", tools=[theirs])
    assert [(made.id, made.name) for made in result.tool_calls] == [("c2", "ask")]
    assert (result.text, result.finish_reason) == ("Both. ", "tool_calls")


def test_a_last_turn_that_says_nothing_is_empty() -> None:
    collector = Collector("m", "p")
    turns = [Started(), TextDelta("Before."), ToolCallDelta(0, "{}", "c1", "look"), ToolResult("c1", "look", 1)]
    for event in (*turns, Started(), Usage(), Done("stop")):
        collector.add(event)
    assert (collector.result().text, collector.result().tool_calls) == ("", ())


def test_a_restart_that_tells_the_turns_before_once_more_changes_nothing() -> None:
    collector = Collector("m", "p")
    turn = [TextDelta("One."), ToolCallDelta(0, "{}", "c1", "look"), ToolResult("c1", "look", 1)]
    late = [Meta(restart=True), *turn, Started(), TextDelta("Two.")]
    for event in (Started(), *turn, Started(), TextDelta("Tw"), *late, Usage(), Done("stop")):
        collector.add(event)
    result = collector.result()
    assert (result.text, result.tool_calls, len(result.tool_results)) == ("Two.", (), 1)


@pytest.mark.parametrize("name", ["logprobs", "top_logprobs"])
async def test_log_probabilities_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"^{name}: "):
        await litellm.acompletion("openai/gpt-5-mini", "Hi", **{name: 1})
