"""What a stream of events amounts to: text, reasoning, tool calls. Restarts and continuations are applied."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltafan.events import (
    Done,
    Error,
    Event,
    Meta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolResult,
    Usage,
)


@dataclass(slots=True)
class ToolCall:
    """One call as its pieces have built it so far."""

    index: int
    id: str | None = None
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Transcript:
    """Feed it events in order; read what the output is now. Only choice 0 is kept."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_results: list[ToolResult] = field(default_factory=list)
    usage: Usage | None = None
    error: Error | None = None
    done: Done | None = None
    attempt: int = 0

    def add(self, event: Event) -> None:
        match event:
            case Meta():
                self._begin(event)
            case TextDelta(choice=0):
                self.text += event.text
            case ReasoningDelta(choice=0):
                self.reasoning += event.text
            case RefusalDelta(choice=0):
                self.refusal += event.text
            case ToolCallDelta(choice=0):
                self._tool_call(event)
            case ToolResult():
                self.tool_results.append(event)
            case Usage():
                self.usage = event
            case Error():
                self.error = event
            case Done():
                self.done = event
            case _:
                pass

    def _begin(self, meta: Meta) -> None:
        self.attempt = meta.attempt
        self.error = None
        if not meta.continued:
            self.text = self.reasoning = self.refusal = ""
            self.tool_calls.clear()
            self.tool_results.clear()

    def _tool_call(self, piece: ToolCallDelta) -> None:
        """A piece that brings an id begins a call, also under an index that was used before (a later turn's)."""
        open_calls = [call for call in self.tool_calls if call.index == piece.index]
        call = open_calls[-1] if open_calls else None
        if call is None or (piece.call_id is not None and call.id is not None and piece.call_id != call.id):
            call = ToolCall(piece.index)
            self.tool_calls.append(call)
        call.id = call.id or piece.call_id
        call.name = call.name or piece.name or ""
        call.arguments += piece.arguments
