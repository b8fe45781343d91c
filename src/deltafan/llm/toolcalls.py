"""The pieces of tool calls, brought into OpenAI's order: id and name first and once, then argument fragments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from deltafan.events import ToolCallDelta
from deltafan.llm.failures import malformed

MAX_INDEX = 2**31 - 1
"""What every reader's integers hold. A larger number of a choice or a call is none."""


@dataclass(slots=True)
class _Call:
    call_id: str = ""
    name: str = ""


class ToolCalls:
    """The tool calls of one choice.

    OpenAI numbers the pieces and sends id and name on the first of each call. Others leave out the number, number all
    calls 0, repeat id and name on every piece, or send the whole call at once with its arguments as an object.
    """

    __slots__ = ("_calls", "_choice", "_current")

    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._calls: dict[int, _Call] = {}
        self._current: dict[int | None, int] = {}  # the call that a number (or its absence) stands for now

    def decode(self, delta: dict[str, Any]) -> list[ToolCallDelta]:
        """:raises CompletionError: `malformed_stream`."""
        pieces = delta.get("tool_calls")
        if pieces and type(pieces) is not list:
            raise malformed("`tool_calls` is not a list")
        out = [event for piece in pieces or () if (event := self._piece(piece)) is not None]
        legacy = delta.get("function_call")
        if legacy:
            # There is one, it has no id, and nothing else is numbered beside it.
            event = self._piece({"index": 0, "function": legacy})
            if event is not None:
                out.append(event)
        return out

    def _piece(self, piece: Any) -> ToolCallDelta | None:
        if type(piece) is not dict:
            raise malformed("a tool call is not an object")
        function = piece.get("function") or piece.get("custom") or {}
        if type(function) is not dict:
            raise malformed("a tool call's `function` is not an object")
        call_id = _word(piece.get("id"))
        name = _word(function.get("name"))
        index = self._index(piece.get("index"), call_id, name)
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call()
        new_id = call_id if not call.call_id else ""
        new_name = name if not call.name else ""
        call.call_id = call.call_id or call_id
        call.name = call.name or name
        arguments = _arguments(function.get("arguments", function.get("input")))
        if not (new_id or new_name or arguments):
            return None
        return ToolCallDelta(index, arguments, new_id or None, new_name or None, self._choice)

    def _index(self, given: Any, call_id: str, name: str) -> int:
        """Which call the piece belongs to: by its id, if that is known; by its number, unless it must be a new call."""
        if given is not None and (type(given) is not int or not 0 <= given <= MAX_INDEX):
            raise malformed("a tool call's `index` is not a whole number")
        if call_id:
            for index, call in self._calls.items():
                if call.call_id == call_id:
                    return index
        current = self._current.get(given)
        if current is not None and not self._is_new(self._calls[current], given, call_id, name):
            return current
        index = given if given is not None and given not in self._calls else max(self._calls, default=-1) + 1
        self._current[given] = index
        return index

    def _is_new(self, call: _Call, given: int | None, call_id: str, name: str) -> bool:
        if call_id and call.call_id:  # another id than the call's; a number says no more if there is a name too
            return bool(name) or given is None
        return given is None and bool(name) and bool(call.name)


def _word(value: Any) -> str:
    return value if type(value) is str else ""


def _arguments(value: Any) -> str:
    if type(value) is str:
        return value
    try:
        return "" if value is None else orjson.dumps(value).decode()
    except TypeError as error:  # deeper than it goes, or a number that is too large
        raise malformed(f"a tool call's arguments are not JSON: {error}") from None
