"""The bytes of an answer: a stream of chunks, or one JSON body, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from deltafan.devserver.provider.answer import Answer, CallArguments, CallStart, Choice, Delta, TextPiece
from deltafan.devserver.provider.sent import CallPiece, counts

DONE = b"data: [DONE]\n\n"


class Piece(NamedTuple):
    """One event of a stream, as bytes. `counted` pieces are those that rates, faults and tokens count."""

    data: bytes
    counted: bool = False
    text: str = ""
    """What it adds to the text of choice 0."""
    fault: str | None = None
    """The fault that it shows to the client."""
    calls: tuple[CallPiece, ...] = ()
    """What it adds to the tool calls of choice 0."""
    usage: Mapping[str, int] | None = None
    """The usage that it reports."""
    finish_reason: str | None = None
    """With which it ends choice 0."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of a stream share, and what follows the last choice."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str
    usage: bool = False
    """A last chunk holds the usage."""
    late_usage: bool = False
    """One without choices comes before it."""
    done: bool = True


def stream_pieces(answer: Answer, envelope: Envelope) -> Iterator[Piece]:
    """The events of an answer, its choices interleaved, made as they are taken."""
    head = _head(envelope)
    tail = b',"usage":null}\n\n' if envelope.usage else b"}\n\n"
    for index, choice in enumerate(answer.choices):
        content = b"null" if choice.deltas and not isinstance(choice.deltas[0], TextPiece) else b'""'
        role = b'{"role":"assistant","content":' + content + b',"refusal":null}'
        yield Piece(head + _choice_json(index, role) + tail)
    yield from _interleaved(answer, head, tail)
    if envelope.usage:
        if envelope.late_usage:
            yield Piece(head + b"[]" + tail)
        used = usage_of(answer)
        yield Piece(head + b'[],"usage":' + orjson.dumps(used) + b"}\n\n", usage=counts(used))
    if envelope.done:
        yield Piece(DONE)


def completion_body(answer: Answer, envelope: Envelope) -> bytes:
    """The one body of a request that does not stream."""
    body = {
        "id": envelope.id,
        "object": "chat.completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [
            {"index": i, "message": _message(c), "logprobs": None, "finish_reason": c.finish_reason}
            for i, c in enumerate(answer.choices)
        ],
    }
    if envelope.usage:
        body["usage"] = usage_of(answer)
    return orjson.dumps(body)


def usage_of(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }


def call_pieces(delta: Delta) -> tuple[CallPiece, ...]:
    """What a delta adds to a tool call."""
    match delta:
        case CallStart(index, call_id, name):
            return (CallPiece(index, call_id, name),)
        case CallArguments(index, fragment):
            return (CallPiece(index, arguments=fragment),)
        case _:
            return ()


def _head(envelope: Envelope) -> bytes:
    common = {
        "id": envelope.id,
        "object": "chat.completion.chunk",
        "created": envelope.created,
        "model": envelope.model,
        "system_fingerprint": None,
    }
    return b"data: " + orjson.dumps(common)[:-1] + b',"choices":'


def _interleaved(answer: Answer, head: bytes, tail: bytes) -> Iterator[Piece]:
    waiting = [(index, choice, iter(choice.deltas)) for index, choice in enumerate(answer.choices)]
    while waiting:
        still_waiting = []
        for index, choice, deltas in waiting:
            delta = next(deltas, None)
            if delta is None:
                end = head + _choice_json(index, b"{}", choice.finish_reason) + tail
                yield Piece(end, fault=choice.fault, finish_reason=None if index else choice.finish_reason)
                continue
            still_waiting.append((index, choice, deltas))
            text = delta.text if index == 0 and isinstance(delta, TextPiece) and delta.field == "content" else ""
            calls = () if index else call_pieces(delta)
            yield Piece(head + _choice_json(index, _delta_json(delta)) + tail, True, text, calls=calls)
        waiting = still_waiting


def _choice_json(index: int, delta: bytes, finish_reason: str | None = None) -> bytes:
    return b'[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]' % (
        index,
        delta,
        orjson.dumps(finish_reason),
    )


def _delta_json(delta: Delta) -> bytes:
    match delta:
        case TextPiece(field, text):
            return b'{"%b":%b}' % (field.encode(), orjson.dumps(text))
        case CallStart(index, call_id, name):
            function: dict[str, str] = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return orjson.dumps({"tool_calls": [call]})
        case CallArguments(index, fragment):
            return orjson.dumps({"tool_calls": [{"index": index, "function": {"arguments": fragment}}]})


def _message(choice: Choice) -> dict[str, Any]:
    calls: list[dict[str, Any]] = []
    for delta in choice.deltas:
        if isinstance(delta, CallStart):
            function = {"name": delta.name, "arguments": ""}
            calls.append({"id": delta.id, "type": "function", "function": function})
        elif isinstance(delta, CallArguments):
            calls[delta.index]["function"]["arguments"] += delta.fragment
    text, refusal = choice.joined("content"), choice.joined("refusal")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refusal or (calls and not text) else text,
        "refusal": refusal or None,
    }
    if reasoning := choice.joined("reasoning_content"):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
