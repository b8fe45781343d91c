"""Token counts: read from what providers report, estimated where they report none, and summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltafan.events import Usage, UsageSource

CHARS_PER_TOKEN = 4
"""A rule of thumb for English text under the tokenizers in use; code and other scripts take more tokens."""
TOKENS_PER_MESSAGE = 4
"""What the chat markup around one message takes."""
TOKENS_PER_IMAGE = 765
"""An image of 1024 x 1024 pixels in full detail, by OpenAI's rule for GPT-4o: 85 + 4 tiles of 170."""

_MAX_COUNT = 2**53 - 1  # what every JSON reader can hold; nothing larger is a token count


def parse(raw: Any, *, cost_in_usage: bool = False) -> Usage | None:
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
    cached = _count(_details(raw, "prompt"), "cached_tokens")
    if cached is None:
        cached = _count(raw, "prompt_cache_hit_tokens", "cached_tokens")  # DeepSeek; Together and Moonshot
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=cached,
        reasoning_tokens=_count(_details(raw, "completion"), "reasoning_tokens"),
        cost_usd=_cost(raw.get("cost")) if cost_in_usage else None,
        source="reported",
    )


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


_BEST_FIRST: tuple[UsageSource, ...] = ("reported", "estimated", "unknown")


def add(a: Usage, b: Usage) -> Usage:
    """The sum. What is unknown in either is unknown in the sum, and the source is the worse of the two."""
    return Usage(
        prompt_tokens=_sum(a.prompt_tokens, b.prompt_tokens),
        completion_tokens=_sum(a.completion_tokens, b.completion_tokens),
        total_tokens=_sum(a.total_tokens, b.total_tokens),
        cached_tokens=_sum(a.cached_tokens, b.cached_tokens),
        reasoning_tokens=_sum(a.reasoning_tokens, b.reasoning_tokens),
        cost_usd=None if a.cost_usd is None or b.cost_usd is None else a.cost_usd + b.cost_usd,
        source=max(a.source, b.source, key=_BEST_FIRST.index),
    )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _count(raw: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = raw.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value <= _MAX_COUNT:
            return value
    return None


def _details(raw: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    details = raw.get(f"{of}_tokens_details")
    return details if isinstance(details, Mapping) else {}


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
