"""On every recording, what our decoder makes of the bytes equals what the openai SDK's own objects accumulate."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from deltafan.errors import CompletionError
from deltafan.events import Done, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm import Request
from deltafan.llm.client import OpenAICompletions
from tests.unit.llm.server import KEY, answering, serving, settings

STREAMS = Path(os.environ.get("DELTAFAN_STREAMS") or Path(__file__).resolve().parents[3] / "shared" / "streams")
RECORDINGS = sorted((STREAMS / "chat").glob("*/*.sse"))
MESSAGES = [{"role": "user", "content": "hello"}]


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
    failed: bool = False


def test_the_recordings_are_there() -> None:
    if not RECORDINGS:
        if os.environ.get("CI"):
            pytest.fail(f"no recordings in {STREAMS}: set DELTAFAN_STREAMS")
        pytest.skip(f"no recordings in {STREAMS}")


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_events_equal_what_the_sdk_accumulates(path: Path) -> None:
    async with serving(answering(raw=recorded(path))) as base_url:
        ours = await with_deltafan(base_url, path.parent.name)
        theirs = await with_sdk(base_url)
    if path.parent.name == "snowflake":
        assert theirs.finish_reason is None, "the reason why snowflake's [DONE] counts as one"
        theirs.finish_reason = "stop"
    assert ours == theirs
    assert ours.failed or ours.text or ours.reasoning or ours.tool_calls


def recorded(path: Path) -> bytes:
    return path.read_bytes()


async def with_deltafan(base_url: str, provider: str) -> Result:
    result = Result()
    async with OpenAICompletions(settings(base_url, provider=provider)) as completions:
        try:
            async with aclosing(completions.stream(Request(model="m", messages=MESSAGES))) as events:
                async for event in events:
                    match event:
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
                        case Usage():
                            if event.source == "reported":
                                result.usage = (
                                    event.prompt_tokens,
                                    event.completion_tokens,
                                    event.total_tokens,
                                    event.cached_tokens,
                                    event.reasoning_tokens,
                                )
                        case Done():
                            result.finish_reason = event.finish_reason
        except CompletionError:
            result.failed = True
    return result


async def with_sdk(base_url: str) -> Result:
    result = Result()
    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        try:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
            async for chunk in stream:
                accumulate(result, chunk)
        except openai.APIError:
            result.failed = True
    return result


def accumulate(result: Result, chunk: Any) -> None:
    for choice in chunk.choices or ():
        delta = choice.delta
        extra = delta.model_extra or {}
        result.reasoning += extra.get("reasoning_content") or extra.get("reasoning") or ""
        if isinstance(delta.content, list):
            for part in delta.content:
                if part["type"] == "thinking":
                    result.reasoning += "".join(inner["text"] for inner in part["thinking"])
                else:
                    result.text += part["text"]
        else:
            result.text += delta.content or ""
        result.refusal += delta.refusal or ""
        for piece in delta.tool_calls or ():
            call = result.tool_calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.id or ""
            call[1] += (piece.function and piece.function.name) or ""
            call[2] += (piece.function and piece.function.arguments) or ""
        result.finish_reason = choice.finish_reason or result.finish_reason
    if chunk.usage is not None:
        usage = chunk.usage
        extra = usage.model_extra or {}
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        result.usage = (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            extra.get("cached_tokens") if cached is None else cached,
            usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None,
        )
    elif (groq := (chunk.model_extra or {}).get("x_groq", {}).get("usage")) is not None:
        details = groq.get("completion_tokens_details") or {}
        counts = (groq["prompt_tokens"], groq["completion_tokens"], groq["total_tokens"])
        result.usage = (*counts, None, details.get("reasoning_tokens"))
