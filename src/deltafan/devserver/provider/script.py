"""The script: what the provider answers, how fast, and what goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import orjson

from deltafan.devserver.provider.faults import Fault
from deltafan.devserver.provider.source import Replay, Source, Written, check_text
from deltafan.errors import FieldError, ValidationError

MAX_CHUNK_SIZE = 65536
MAX_DELAY = 3600.0
MAX_TOOL_CALLS = 128

_NOT_IN_A_REPLAY = ("content_filter", "no_usage", "late_usage")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the scripted model makes. `arguments` is sent as it is, so that it may be broken JSON on purpose."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What every request is answered with, unless its headers or its metadata say otherwise.

    :raises ValidationError: names each field that is wrong and the rule it breaks.
    """

    source: Source = field(default_factory=Written)
    rate: float = 0.0
    """Chunks a second; 0 is as fast as it can."""
    chunk_size: int = 4
    """Characters in a chunk. A combining mark or a joined emoji stays with the character before it."""
    first_token_delay: float = 0.0
    """Seconds between the headers and the first chunk."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Made in every answer but one to a tool's result, after the text if a text is scripted."""
    reasoning: str = ""
    """Sent as `reasoning_content` before the text."""
    refusal: str = ""
    """Sent as `refusal` instead of the text."""
    finish_reason: str | None = None
    """None is what fits: `stop`, `length` or `tool_calls`."""
    usage: bool = True
    """False leaves the usage out, even when it is asked for."""
    faults: tuple[Fault, ...] = ()
    require_key: str | None = None
    """The bearer key that a request must have; None accepts any, and none."""

    def __post_init__(self) -> None:
        errors = [
            FieldError(field, rule)
            for field, is_right, rule in (
                ("rate", _is_number(self.rate), "must be a number of chunks a second, 0 or more"),
                (
                    "chunk_size",
                    _is_whole(self.chunk_size) and 1 <= self.chunk_size <= MAX_CHUNK_SIZE,
                    f"must be a whole number from 1 to {MAX_CHUNK_SIZE}",
                ),
                (
                    "first_token_delay",
                    _is_number(self.first_token_delay) and self.first_token_delay <= MAX_DELAY,
                    f"must be a number of seconds from 0 to {MAX_DELAY:g}",
                ),
                ("tool_calls", len(self.tool_calls) <= MAX_TOOL_CALLS, f"must be at most {MAX_TOOL_CALLS}"),
                ("tool_calls", all(call.name for call in self.tool_calls), "must each have a name"),
                (
                    "finish_reason",
                    self.finish_reason is None or 1 <= len(self.finish_reason) <= 64,
                    "must have 1 to 64 characters",
                ),
                ("require_key", self.require_key != "", "must not be empty"),
            )
            if not is_right
        ]
        if isinstance(self.source, Replay):
            errors += self._not_in_a_replay()
        if errors:
            raise ValidationError(errors)
        for name, text in (
            ("reasoning", self.reasoning),
            ("refusal", self.refusal),
            ("finish_reason", self.finish_reason or ""),
            *(("tool_calls", call.name + call.arguments) for call in self.tool_calls),
        ):
            check_text(name, text)

    def _not_in_a_replay(self) -> list[FieldError]:
        rule = "does not apply to a replay, which is sent as it was recorded"
        given = {
            "tool_calls": self.tool_calls,
            "reasoning": self.reasoning,
            "refusal": self.refusal,
            "finish_reason": self.finish_reason,
        }
        faults = [fault.name for fault in self.faults if fault.name in _NOT_IN_A_REPLAY]
        return [FieldError(field, rule) for field, value in given.items() if value] + [
            FieldError("faults", f"{name} {rule}") for name in faults
        ]


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Reads a JSON list of `{"name": ..., "arguments": {...}}`; arguments that are a string are sent as they are.

    :raises ValidationError: the text is not of that form.
    """
    try:
        calls = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _bad_calls(f"is not JSON: {error}") from None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _bad_calls('must be a JSON list of {"name": ..., "arguments": {...}}')
    return tuple(_tool_call(call) for call in calls)


def _tool_call(call: dict[str, object]) -> ToolCall:
    if unknown := call.keys() - {"name", "arguments"}:
        raise _bad_calls(f"has an unknown field {min(unknown)!r}; a call has a name and arguments")
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str):
        raise _bad_calls("must each have a name, which is a string")
    if isinstance(arguments, str):
        return ToolCall(name, arguments)
    if not isinstance(arguments, dict):
        raise _bad_calls("must have arguments that are an object, or a string to be sent as it is")
    return ToolCall(name, orjson.dumps(arguments).decode())


def _bad_calls(rule: str) -> ValidationError:
    return ValidationError([FieldError("tool_calls", rule)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
