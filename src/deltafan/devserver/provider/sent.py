"""What an answer's pieces amount to beside their text: tool calls, usage, the finish reason. Read by the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

MAX_CALLS = 128
"""Tool calls that a record keeps: as many as a script may make."""
MAX_ARGUMENTS_BYTES = 64 << 10
"""UTF-8 bytes of one call's arguments that a record keeps."""


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What one chunk adds to a tool call of choice 0."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class SentCall:
    """A tool call as it was sent so far."""

    index: int
    id: str | None = None
    name: str = ""
    arguments_length: int = 0
    """Characters of the arguments."""
    _arguments: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def arguments(self) -> str:
        """The arguments, their first 64 KiB."""
        return self._arguments.decode(errors="ignore")

    def add(self, piece: CallPiece) -> None:
        self.id = self.id or piece.id
        self.name = self.name or piece.name or ""
        self.arguments_length += len(piece.arguments)
        if len(self._arguments) < MAX_ARGUMENTS_BYTES:
            self._arguments += piece.arguments.encode()[: MAX_ARGUMENTS_BYTES - len(self._arguments)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "id": self.id,
            "name": self.name,
            "arguments": self.arguments,
            "arguments_length": self.arguments_length,
        }


def add_call(calls: list[SentCall], piece: CallPiece) -> None:
    """Add a piece to the call that it belongs to. A new id begins a new call, also under an index of an earlier one."""
    call = next((call for call in reversed(calls) if call.index == piece.index), None)
    if call is None or (piece.id is not None and call.id is not None and piece.id != call.id):
        if len(calls) == MAX_CALLS:
            return
        call = SentCall(piece.index)
        calls.append(call)
    call.add(piece)


def counts(usage: object) -> dict[str, int] | None:
    """A usage of any of the interfaces, as `prompt_tokens`, `completion_tokens`, `total_tokens`, `cached_tokens` and
    `reasoning_tokens`, as far as it holds them; `None` if it holds none.
    """
    if not isinstance(usage, Mapping):
        return None
    prompt = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    completion = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    found = {
        "prompt_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "completion_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        "total_tokens": usage.get("total_tokens"),
        "cached_tokens": prompt.get("cached_tokens") if isinstance(prompt, Mapping) else None,
        "reasoning_tokens": completion.get("reasoning_tokens") if isinstance(completion, Mapping) else None,
    }
    return {name: value for name, value in found.items() if type(value) is int} or None


class Recorded(NamedTuple):
    """What an event of a recording adds to choice 0."""

    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    usage: Mapping[str, int] | None = None
    finish_reason: str | None = None


def read_event(event: bytes) -> Recorded:
    """Read a recorded event, of chat completions or of the Responses API; what makes no sense adds nothing."""
    line = next((line for line in event.splitlines() if line.startswith(b"data:")), b"data:")
    try:
        data = orjson.loads(line[5:])
    except orjson.JSONDecodeError:
        return Recorded()
    try:
        return _of_response(data) if "type" in data else _of_chunk(data)
    except (KeyError, TypeError, AttributeError, IndexError):
        return Recorded()


def _of_chunk(chunk: Any) -> Recorded:
    usage = counts(chunk.get("usage"))
    choice = next((choice for choice in chunk["choices"] if choice.get("index", 0) == 0), None)
    if choice is None:
        return Recorded(usage=usage)
    delta = choice.get("delta") or {}
    calls = tuple(
        CallPiece(
            call["index"],
            call.get("id"),
            call.get("function", {}).get("name"),
            call.get("function", {}).get("arguments") or "",
        )
        for call in delta.get("tool_calls") or ()
    )
    text = delta.get("content")
    return Recorded(text if isinstance(text, str) else "", calls, usage, choice.get("finish_reason"))


def _of_response(event: Any) -> Recorded:
    match event["type"]:
        case "response.output_text.delta":
            return Recorded(str(event["delta"]))
        case "response.output_item.added" if event["item"]["type"] == "function_call":
            item = event["item"]
            return Recorded(calls=(CallPiece(event["output_index"], item["call_id"], item["name"]),))
        case "response.function_call_arguments.delta":
            return Recorded(calls=(CallPiece(event["output_index"], arguments=str(event["delta"])),))
        case "response.completed" | "response.incomplete":
            status = str(event["response"]["status"])
            return Recorded(usage=counts(event["response"].get("usage")), finish_reason=status)
        case _:
            return Recorded()
