"""Events of OpenAI's Responses API to ours, one at a time, or a whole response at once.

What the provider's own tools do (web search, code, images) is left out: chat completions have nothing of the kind. A
call that the caller has to run is a tool call, numbered in the order in which calls appear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deltafan.events import Delta, FinishReason, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from deltafan.llm.failures import malformed
from deltafan.llm.finish import FINISH_REASONS

_BETWEEN_PARTS = "\n\n"
"""Between two parts of a reasoning, each of which is a text of its own."""
_ARGUMENTS = {"function_call": "arguments", "custom_tool_call": "input"}
_BROKEN_OFF = ("failed", "cancelled")
_RUNNING = ("queued", "in_progress")

_Key = int | str | None
"""What tells the items of a response apart: `output_index`, or `item_id` where a server leaves it out."""


@dataclass(slots=True)
class _Call:
    index: int
    named: bool = False
    argued: bool = False
    """Arguments have been sent."""


class ResponsesDecoder:
    """One response. The attributes are those of `ChunkDecoder`."""

    __slots__ = ("_calls", "_finish", "_reasoning", "_streamed", "error", "head", "output_chars", "usage")

    def __init__(self) -> None:
        self.usage: dict[str, Any] | None = None
        self.error: Any = None
        self.head: dict[str, Any] = {}
        """The response as it was last told of."""
        self.output_chars = 0
        self._finish: FinishReason | None = None
        self._calls: dict[_Key, _Call] = {}
        self._reasoning: tuple[Any, ...] | None = None
        """The part that the last reasoning belonged to."""
        self._streamed: set[_Key] = set()
        """Items of which a delta has come."""

    @property
    def begun(self) -> bool:
        return bool(self.head)

    @property
    def finished(self) -> bool:
        return self._finish is not None

    @property
    def finish_reason(self) -> FinishReason:
        return self._finish or "stop"

    def decode(self, event: Any) -> list[Delta]:
        """The deltas of one event. Usage, errors and the finish reason are left in the attributes.

        :raises CompletionError: `malformed_stream`.
        """
        if type(event) is not dict:
            raise malformed("an event is not an object")
        kind = event.get("type")
        if kind == "response.output_text.delta":
            return self._delta(event, TextDelta)
        handle = _HANDLERS.get(kind) if type(kind) is str else None
        if handle is not None:
            return handle(self, event)
        if event.get("error"):
            self.error = event["error"]
        return []

    def whole(self, response: Any) -> list[Delta]:
        """The deltas of a response that was not streamed.

        :raises CompletionError: `malformed_stream`.
        """
        if type(response) is not dict:
            raise malformed("the answer is not an object")
        error = response.get("error")
        if error:
            self.error = error
            return []
        if response.get("status") in _RUNNING:
            raise malformed(f"the answer is not there yet, its status is {response['status']}")
        if type(response.get("output")) is not list:
            raise malformed("the answer has no `output`")
        return self._end(response, "completed")

    def _delta(self, event: dict[str, Any], cls: type[TextDelta | RefusalDelta]) -> list[Delta]:
        text = _delta_text(event)
        self._streamed.add(_key(event))
        return self._said(text, cls)

    def _said(self, text: str, cls: type[TextDelta | RefusalDelta]) -> list[Delta]:
        self.output_chars += len(text)
        return [cls(text)] if text else []

    def _refusal(self, event: dict[str, Any]) -> list[Delta]:
        return self._delta(event, RefusalDelta)

    def _reasoning_delta(self, event: dict[str, Any]) -> list[Delta]:
        key = _key(event)
        self._streamed.add(key)
        part = (key, event.get("type"), event.get("summary_index"), event.get("content_index"))
        return self._reasoned(_delta_text(event), part)

    def _reasoned(self, text: str, part: tuple[Any, ...]) -> list[Delta]:
        if not text:
            return []
        if self._reasoning is not None and part != self._reasoning:
            text = _BETWEEN_PARTS + text
        self._reasoning = part
        self.output_chars += len(text)
        return [ReasoningDelta(text)]

    def _arguments_delta(self, event: dict[str, Any]) -> list[Delta]:
        return self._argue(self._call(_key(event)), _delta_text(event))

    def _arguments_done(self, event: dict[str, Any]) -> list[Delta]:
        """All the arguments, for servers that send no deltas of them."""
        call = self._call(_key(event))
        return [] if call.argued else self._argue(call, _text(event.get("arguments", event.get("input"))))

    def _call(self, key: _Key) -> _Call:
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(len(self._calls))
        return call

    def _name(self, call: _Call, item: Mapping[str, Any]) -> list[Delta]:
        call_id, name = _text(item.get("call_id")) or _text(item.get("id")), _text(item.get("name"))
        if call.named or not name:
            return []
        call.named = True
        return [ToolCallDelta(call.index, "", call_id or None, name)]

    def _argue(self, call: _Call, arguments: str) -> list[Delta]:
        if not arguments:
            return []
        call.argued = True
        self.output_chars += len(arguments)
        return [ToolCallDelta(call.index, arguments)]

    def _item_added(self, event: dict[str, Any]) -> list[Delta]:
        item = _object(event.get("item"), "`item`")
        return self._name(self._call(_key(event)), item) if _kind(item) in _ARGUMENTS else []

    def _item_done(self, event: dict[str, Any]) -> list[Delta]:
        """What of the item has not come in deltas: some servers send none of some kinds."""
        return self._item(_key(event), _object(event.get("item"), "`item`"))

    def _item(self, key: _Key, item: dict[str, Any]) -> list[Delta]:
        kind = _kind(item)
        out: list[Delta] = []
        if kind in _ARGUMENTS:
            call = self._call(key)
            out += self._name(call, item)
            return out if call.argued else out + self._argue(call, _text(item.get(_ARGUMENTS[kind])))
        if key in self._streamed:
            return out
        if kind == "reasoning":
            for place in ("summary", "content"):
                for number, part in enumerate(_parts(item, place)):
                    out += self._reasoned(_text(part.get("text")), (key, place, number))
        elif kind == "message":
            for part in _parts(item, "content"):
                out += self._said(_text(part.get("text")), TextDelta)
                out += self._said(_text(part.get("refusal")), RefusalDelta)
        return out

    def _told(self, event: dict[str, Any]) -> list[Delta]:
        self.head = _object(event.get("response"), "`response`")
        return []

    def _ended(self, event: dict[str, Any]) -> list[Delta]:
        return self._end(_object(event.get("response"), "`response`"), event["type"].removeprefix("response."))

    def _end(self, response: dict[str, Any], status: str) -> list[Delta]:
        self.head = response
        status = _text(response.get("status")) or status
        if status in _BROKEN_OFF or response.get("error"):
            self.error = response.get("error") or {"message": f"the provider broke the answer off: {status}"}
            return []
        out: list[Delta] = []
        if not self.output_chars and not self._calls:
            for position, item in enumerate(_parts(response, "output")):
                out += self._item(position, item)
        usage = response.get("usage")
        if usage and type(usage) is dict:
            self.usage = usage
        if status == "incomplete":
            details = response.get("incomplete_details")
            reason = _text(details.get("reason")) if type(details) is dict else ""
            self._finish = FINISH_REASONS.get(reason, "length")
        else:
            self._finish = "tool_calls" if self._calls else "stop"
        return out

    def _failed(self, event: dict[str, Any]) -> list[Delta]:
        self.error = event.get("error") or event
        return []


_HANDLERS: Mapping[str, Callable[[ResponsesDecoder, dict[str, Any]], list[Delta]]] = {
    "response.reasoning_summary_text.delta": ResponsesDecoder._reasoning_delta,
    "response.reasoning_text.delta": ResponsesDecoder._reasoning_delta,
    "response.refusal.delta": ResponsesDecoder._refusal,
    "response.function_call_arguments.delta": ResponsesDecoder._arguments_delta,
    "response.function_call_arguments.done": ResponsesDecoder._arguments_done,
    "response.custom_tool_call_input.delta": ResponsesDecoder._arguments_delta,
    "response.custom_tool_call_input.done": ResponsesDecoder._arguments_done,
    "response.output_item.added": ResponsesDecoder._item_added,
    "response.output_item.done": ResponsesDecoder._item_done,
    "response.created": ResponsesDecoder._told,
    "response.queued": ResponsesDecoder._told,
    "response.in_progress": ResponsesDecoder._told,
    "response.completed": ResponsesDecoder._ended,
    "response.incomplete": ResponsesDecoder._ended,
    "response.failed": ResponsesDecoder._ended,
    "response.cancelled": ResponsesDecoder._ended,
    "response.error": ResponsesDecoder._failed,
    "error": ResponsesDecoder._failed,
}


def _key(event: dict[str, Any]) -> _Key:
    for value in (event.get("output_index"), event.get("item_id")):
        if type(value) is int or type(value) is str:
            return value
    return None


def _delta_text(event: dict[str, Any]) -> str:
    delta = event.get("delta")
    if type(delta) is not str:
        raise malformed("a `delta` is not text")
    return delta


def _object(value: Any, what: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise malformed(f"{what} is not an object")
    return value


def _parts(item: dict[str, Any], name: str) -> list[dict[str, Any]]:
    parts = item.get(name) or []
    if type(parts) is not list or not all(type(part) is dict for part in parts):
        raise malformed(f"`{name}` is not a list of objects")
    return parts


def _kind(item: dict[str, Any]) -> str:
    return _text(item.get("type"))


def _text(value: Any) -> str:
    return value if type(value) is str else ""
