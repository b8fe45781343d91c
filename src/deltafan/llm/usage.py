"""Token counts: read from what providers report, estimated where they report none, and summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltafan.events import Usage

CHARS_PER_TOKEN = 4
"""A rule of thumb for English text under the tokenizers in use; code and other scripts take more tokens."""
TOKENS_PER_MESSAGE = 4
"""What the chat markup around one message takes."""
TOKENS_PER_IMAGE = 765
"""An image of 1024 x 1024 pixels in full detail, by OpenAI's rule for GPT-4o: 85 + 4 tiles of 170."""

_MAX_COUNT = 2**53 - 1  # what every JSON reader can hold; nothing larger is a token count


def parse_usage(raw: Any, *, cost_in_usage: bool = False) -> Usage | None:
    """The usage that a provider reported, or `None` if no token count can be read from it.

    Counts that make no sense (negative, text, fractions) are unknown, not an error.
    """
    if not isinstance(raw, Mapping):
        return None
    prompt = _count(raw, "prompt_tokens", "input_tokens")
    completion = _count(raw, "completion_tokens", "output_tokens")
    total = _count(raw, "total_tokens")
    if prompt is None and completion is None and total is None:
        return None
    if total is None and prompt is not None and completion is not None:
        total = prompt + completion
    cached = _count(_details(raw, "prompt", "input"), "cached_tokens")
    if cached is None:
        cached = _count(raw, "prompt_cache_hit_tokens", "cached_tokens")  # DeepSeek; Together and Moonshot
    reasoning = _count(_details(raw, "completion", "output"), "reasoning_tokens")
    if reasoning is None:
        reasoning = _count(raw, "reasoning_tokens")  # xAI's older answers
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        cost_usd=_cost(raw.get("cost")) if cost_in_usage else None,
        source="reported",
    )


def priced_apart(raw: Any) -> dict[str, int]:
    """Token counts in a provider's usage that may have prices of their own, by the names of genai-prices."""
    if not isinstance(raw, Mapping):
        return {}
    prompt, completion = _details(raw, "prompt", "input"), _details(raw, "completion", "output")
    found = {
        "cache_write_tokens": _count(prompt, "cache_write_tokens", "cache_creation_tokens"),
        "input_audio_tokens": _count(prompt, "audio_tokens"),
        "output_audio_tokens": _count(completion, "audio_tokens"),
    }
    return {name: count for name, count in found.items() if count}


def estimate(messages: Sequence[Mapping[str, Any]], output_chars: int) -> Usage:
    """What a completion that reported nothing is taken to have used: one token for each `CHARS_PER_TOKEN` characters,
    begun ones counted, `TOKENS_PER_MESSAGE` a message and `TOKENS_PER_IMAGE` an image."""
    chars = 0
    fixed = TOKENS_PER_MESSAGE * len(messages)
    for message in messages:
        text, images = _measure(message.get("content"))
        chars += text + sum(_tool_call_chars(call) for call in _items(message.get("tool_calls")))
        fixed += images * TOKENS_PER_IMAGE
    prompt = fixed + math.ceil(chars / CHARS_PER_TOKEN)
    completion = math.ceil(output_chars / CHARS_PER_TOKEN)
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, source="estimated"
    )


def add(a: Usage, b: Usage) -> Usage:
    """The sum. What is unknown in either is unknown in the sum, and the source is the worse of the two."""
    return a + b


def _count(raw: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = raw.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value <= _MAX_COUNT:
            return value
    return None


def _details(raw: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found = (raw.get(f"{name}_tokens_details") for name in names)
    return next((details for details in found if isinstance(details, Mapping)), {})


def _cost(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < math.inf else None


def _measure(content: Any) -> tuple[int, int]:
    """Characters and images of one message's content."""
    if isinstance(content, str):
        return len(content), 0
    chars = images = 0
    for part in _items(content):
        text = part.get("text")
        if isinstance(text, str):
            chars += len(text)
        elif part.get("type") == "image_url":
            images += 1
    return chars, images


def _tool_call_chars(call: Mapping[str, Any]) -> int:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return 0
    return sum(len(value) for value in (function.get("name"), function.get("arguments")) if isinstance(value, str))


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []
