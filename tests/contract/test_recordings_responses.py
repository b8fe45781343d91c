"""On every recording of the Responses API, our events amount to what the response in the openai SDK's objects holds."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai.types.responses import Response, ResponseCompletedEvent

from deltafan.events import Done, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm import Request, Started
from deltafan.llm.client import OpenAICompletions
from tests.unit.llm.server import KEY, answering, serving, settings

STREAMS = Path(os.environ.get("DELTAFAN_STREAMS") or Path(__file__).resolve().parents[3] / "shared" / "streams")
RECORDINGS = sorted((STREAMS / "responses").glob("*/*.sse"))
MESSAGES = [{"role": "user", "content": "hello"}]
recordings = pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")


@dataclass
class Result:
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: dict[int, list[str]] = field(default_factory=dict)
    """By index: id, name, arguments."""
    finish_reason: str | None = None
    usage: tuple[int | None, ...] | None = None
    """Prompt, completion, total, cached and reasoning tokens."""
    response_id: str | None = None
    model: str = ""
    created: int = 0


def test_the_recordings_are_there() -> None:
    if not RECORDINGS:
        if os.environ.get("CI"):
            pytest.fail(f"no recordings in {STREAMS}: set DELTAFAN_STREAMS")
        pytest.skip(f"no recordings in {STREAMS}")


@recordings
async def test_a_streams_events_amount_to_the_sdks_response(path: Path) -> None:
    async with serving(answering(raw=recorded(path))) as base_url:
        ours = await with_deltafan(base_url)
        theirs = amount_of(await with_sdk(base_url))
    assert ours == theirs


@recordings
async def test_the_same_response_at_once_amounts_to_the_same(path: Path) -> None:
    recording = recorded(path)
    async with serving(answering(raw=recording)) as base_url:
        streamed = await with_deltafan(base_url)
    last = next(line for line in reversed(recording.split(b"\n")) if b'"response.completed"' in line)
    body = orjson.dumps(orjson.loads(last.removeprefix(b"data:"))["response"])
    async with serving(answering(raw=body, content_type="application/json")) as base_url:
        assert await with_deltafan(base_url, streaming=False) == streamed


def test_text_reasoning_and_calls_are_all_among_the_recordings() -> None:
    """What the comparisons above rest on."""
    if RECORDINGS:
        everything = b"".join(path.read_bytes() for path in RECORDINGS)
        for kind in ("output_text", "reasoning_summary_text", "reasoning_text", "function_call_arguments"):
            assert f"response.{kind}.delta".encode() in everything


def recorded(path: Path) -> bytes:
    return path.read_bytes()


async def with_deltafan(base_url: str, *, streaming: bool = True) -> Result:
    result = Result()
    request = Request("m", MESSAGES, api="responses", streaming=streaming)
    async with (
        OpenAICompletions(settings(base_url)) as completions,
        aclosing(completions.stream(request)) as events,
    ):
        async for event in events:
            match event:
                case Started():
                    result.response_id, result.model, result.created = event.response_id, event.model, event.created
                case TextDelta(text=text):
                    result.text += text
                case ReasoningDelta(text=text):
                    result.reasoning += text
                case RefusalDelta(text=text):
                    result.refusal += text
                case ToolCallDelta():
                    call = result.tool_calls.setdefault(event.index, ["", "", ""])
                    call[0] += event.call_id or ""
                    call[1] += event.name or ""
                    call[2] += event.arguments
                case Usage(source="reported"):
                    result.usage = (
                        event.prompt_tokens,
                        event.completion_tokens,
                        event.total_tokens,
                        event.cached_tokens,
                        event.reasoning_tokens,
                    )
                case Done():
                    result.finish_reason = event.finish_reason
    return result


async def with_sdk(base_url: str) -> Response:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        events = [event async for event in await client.responses.create(model="m", input="hello", stream=True)]
    assert isinstance(events[-1], ResponseCompletedEvent)
    return events[-1].response


def amount_of(response: Response) -> Result:
    result = Result(
        text=response.output_text,
        response_id=response.id,
        model=str(response.model),
        created=int(response.created_at),
        finish_reason="stop",
    )
    reasoning: list[str] = []
    for item in response.output:
        if item.type == "function_call":
            result.tool_calls[len(result.tool_calls)] = [item.call_id, item.name, item.arguments]
            result.finish_reason = "tool_calls"
        elif item.type == "reasoning":
            parts: list[Any] = [*item.summary, *(item.content or ())]
            reasoning += [part.text for part in parts]
        elif item.type == "message":
            result.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
    result.reasoning = "\n\n".join(reasoning)
    if (usage := response.usage) is not None:
        result.usage = (
            usage.input_tokens,
            usage.output_tokens,
            usage.total_tokens,
            usage.input_tokens_details.cached_tokens,
            usage.output_tokens_details.reasoning_tokens,
        )
    return result
