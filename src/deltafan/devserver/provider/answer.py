"""What is answered: the deltas of every choice, its finish reason, and the usage. One chunk is one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltafan.devserver.provider.api_errors import ApiError
from deltafan.devserver.provider.chat import ChatRequest
from deltafan.devserver.provider.faults import Fault
from deltafan.devserver.provider.script import Script, ToolCall
from deltafan.devserver.provider.source import MAX_TEXT, Echo, Text, Written
from deltafan.devserver.provider.text import split_text, written_text


@dataclass(frozen=True, slots=True)
class TextPiece:
    field: str
    """`content`, `reasoning_content` or `refusal`."""
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    index: int
    fragment: str


Delta = TextPiece | CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Choice:
    deltas: Sequence[Delta]
    finish_reason: str
    fault: str | None = None
    """The fault that ended it early."""

    def joined(self, field: str) -> str:
        return "".join(d.text for d in self.deltas if isinstance(d, TextPiece) and d.field == field)


@dataclass(frozen=True, slots=True)
class Answer:
    choices: Sequence[Choice]
    prompt_tokens: int
    """Words of the messages."""

    @property
    def completion_tokens(self) -> int:
        """Chunks of all choices."""
        return sum(len(choice.deltas) for choice in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        return sum(
            isinstance(delta, TextPiece) and delta.field == "reasoning_content"
            for choice in self.choices
            for delta in choice.deltas
        )


def compose(script: Script, request: ChatRequest, faults: Mapping[str, Fault], completion_id: str) -> Answer:
    """The answer to a request by a script whose source is not a replay.

    :raises ApiError: 400, the text to echo is too long.
    """
    if isinstance(script.source, Written):
        choices = [_choice(script, request, faults, completion_id, index) for index in range(request.choices)]
    else:
        choices = [_choice(script, request, faults, completion_id, 0)] * request.choices
    return Answer(choices, request.prompt_words)


def _choice(
    script: Script, request: ChatRequest, faults: Mapping[str, Fault], completion_id: str, index: int
) -> Choice:
    calls = () if script.refusal or request.answers_tool else script.tool_calls
    text, stopped = _stopped(
        _whole_text(script, request, bool(calls), index).removeprefix(request.prefill), request.stop
    )
    deltas: list[Delta] = []
    if not request.prefill:  # a prefill is past the reasoning
        deltas += _pieces("reasoning_content", script.reasoning, script.chunk_size)
    deltas += _pieces("content", text, script.chunk_size)
    deltas += _pieces("refusal", script.refusal, script.chunk_size)
    made = () if stopped else calls
    for number, call in enumerate(made):
        deltas += _call(number, f"call_{completion_id[-12:]}{number}", call, script.chunk_size)
    return _limited(deltas, script.finish_reason or ("tool_calls" if made else "stop"), script, request, faults)


def _limited(
    deltas: list[Delta], finish_reason: str, script: Script, request: ChatRequest, faults: Mapping[str, Fault]
) -> Choice:
    limit = request.token_limit
    if limit is not None and limit < len(deltas):
        deltas, finish_reason = deltas[:limit], script.finish_reason or "length"
    if (fault := faults.get("content_filter")) and int(fault.arg or 0) <= len(deltas):
        return Choice(deltas[: int(fault.arg or 0)], "content_filter", "content_filter")
    return Choice(deltas, finish_reason)


def _whole_text(script: Script, request: ChatRequest, has_calls: bool, index: int) -> str:
    if script.refusal:
        return ""
    match script.source:
        case Text(text):
            return text
        case Echo():
            return _echo(request)
        case Written() if not has_calls:  # a model that calls a tool seldom says so
            return written_text(request.last_user_text, index)
        case _:
            return ""


def _echo(request: ChatRequest) -> str:
    text = request.last_user_text
    if len(text) > MAX_TEXT:
        raise ApiError(400, f"messages: a text to echo must be at most {MAX_TEXT} characters", param="messages")
    return text


def _stopped(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop sequence, and whether there is one."""
    ends = [end for stop in stops if (end := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _pieces(field: str, text: str, size: int) -> list[Delta]:
    return [TextPiece(field, piece) for piece in split_text(text, size)]


def _call(index: int, call_id: str, call: ToolCall, size: int) -> list[Delta]:
    fragments = [CallArguments(index, fragment) for fragment in split_text(call.arguments, size)]
    return [CallStart(index, call_id, call.name), *fragments]
