"""What a request may take, before anybody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from deltafan.llm import usage
from deltafan.llm.embeddings import Input
from deltafan.llm.limits.budget import MAX_COUNT
from deltafan.llm.request import Request

DEFAULT_OUTPUT: Final = 1024
"""Output tokens that are reserved where a request names no maximum. What it uses beyond them is charged afterwards."""

_MAXIMA: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def prompt_tokens(request: Request) -> int:
    """Tokens of the prompt: as they were counted, or else estimated."""
    if request.prompt_tokens is not None:
        return request.prompt_tokens
    given: Any = request.messages or request.params.get("input")  # the Responses API's own
    if isinstance(given, str):
        given = [{"content": given}]
    # What is no message is for the provider to refuse.
    messages = [each for each in given if isinstance(each, Mapping)] if isinstance(given, Sequence) else []
    return usage.estimate(messages, len(request.prefix)).total_tokens or 0


def max_output(request: Request) -> int:
    """The most that the answer may have by its parameters, all choices together, or `DEFAULT_OUTPUT` for each."""
    maxima = [_count(request.params.get(name)) for name in _MAXIMA]
    most = min((maximum for maximum in maxima if maximum is not None), default=DEFAULT_OUTPUT)
    return min(most * (_count(request.params.get("n")) or 1), MAX_COUNT)


def embedding_tokens(inputs: Sequence[Input]) -> int:
    """Tokens as they are given, and an estimate of those of texts."""
    return sum(-(-len(item) // usage.CHARS_PER_TOKEN) if isinstance(item, str) else len(item) for item in inputs)


def _count(value: object) -> int | None:
    return min(value, MAX_COUNT) if type(value) is int and value > 0 else None
