"""The bytes of an answer by the Responses API: a stream of events, or the one body, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson

from deltafan.devserver.provider.answer import Answer, CallArguments, CallStart, Delta, TextPiece
from deltafan.devserver.provider.api_errors import stream_error
from deltafan.devserver.provider.chunks import Envelope, Piece, call_pieces
from deltafan.devserver.provider.sent import CallPiece, counts

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an answer that the API calls incomplete, and its words for them."""


@dataclass(frozen=True, slots=True)
class _TextKind:
    """Where the API keeps a kind of text, and the events that tell of it."""

    place: str
    """The item's list of parts."""
    index: str
    part: str
    own: str
    """The part's own name of the text."""
    part_event: str
    event: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else a part holds."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What else an event of its text holds."""


_TEXTS = {
    "reasoning_content": _TextKind(
        "summary", "summary_index", "summary_text", "text", "reasoning_summary_part", "reasoning_summary_text"
    ),
    "content": _TextKind(
        "content",
        "content_index",
        "output_text",
        "text",
        "content_part",
        "output_text",
        extra={"annotations": []},
        beside={"logprobs": []},
    ),
    "refusal": _TextKind("content", "content_index", "refusal", "refusal", "content_part", "refusal"),
}


def response_pieces(answer: Answer, envelope: Envelope) -> Iterator[Piece]:
    """The events of an answer, made as they are taken."""
    return _Response(answer, envelope).events()


def response_body(answer: Answer, envelope: Envelope) -> bytes:
    """The one body of a request that does not stream."""
    response = _Response(answer, envelope)
    for _ in response.events():
        pass
    return orjson.dumps(response.ended())


def error_event() -> bytes:
    """What the `error` fault puts inside a stream."""
    error = stream_error()
    return _event({"type": "error", "code": error.code, "message": error.message, "param": None})


class _Response:
    def __init__(self, answer: Answer, envelope: Envelope) -> None:
        self._answer = answer
        self._choice = answer.choices[0]
        self._envelope = envelope
        self._output: list[dict[str, Any]] = []
        self._sequence = 0

    def events(self) -> Iterator[Piece]:
        for event in ("response.created", "response.in_progress"):
            yield self._piece(event, {"response": self._response("in_progress")})
        for kind, deltas in groupby(self._choice.deltas, key=_item_kind):
            if isinstance(kind, str):
                yield from self._text(kind, deltas)
            else:
                yield from self._call(deltas)
        response = self.ended()
        end = self._piece(f"response.{response['status']}", {"response": response}, fault=self._choice.fault)
        yield end._replace(usage=counts(response["usage"]), finish_reason=self._choice.finish_reason)

    def ended(self) -> dict[str, Any]:
        reason = _INCOMPLETE.get(self._choice.finish_reason)
        response = self._response("incomplete" if reason else "completed")
        response["incomplete_details"] = {"reason": reason} if reason else None
        if self._envelope.usage:
            response["usage"] = _usage_of(self._answer)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._envelope.id,
            "object": "response",
            "created_at": self._envelope.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._envelope.model,
            "output": self._output.copy(),
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": None,
        }

    def _text(self, name: str, deltas: Iterable[Delta]) -> Iterator[Piece]:
        kind = _TEXTS[name]
        item = self._new_item(name)
        part: dict[str, Any] = {"type": kind.part, kind.own: ""} | dict(kind.extra)
        where = self._at(item) | {kind.index: 0}
        yield self._piece("response.output_item.added", {"output_index": len(self._output), "item": item})
        yield self._piece(f"response.{kind.part_event}.added", where | {"part": part})
        for delta in deltas:
            if isinstance(delta, TextPiece):
                shown = delta.text if name == "content" else ""
                told = where | dict(kind.beside) | {"delta": delta.text}
                yield self._piece(f"response.{kind.event}.delta", told, counted=True, text=shown)
                part[kind.own] += delta.text
        yield self._piece(f"response.{kind.event}.done", where | dict(kind.beside) | {kind.own: part[kind.own]})
        yield self._piece(f"response.{kind.part_event}.done", where | {"part": part})
        yield self._done(item | {kind.place: [part]})

    def _call(self, deltas: Iterable[Delta]) -> Iterator[Piece]:
        arguments = ""
        item: dict[str, Any] = {}
        for delta in deltas:
            if isinstance(delta, CallStart):
                item = self._new_item("function_call") | {"call_id": delta.id, "name": delta.name, "arguments": ""}
                added = {"output_index": len(self._output), "item": item}
                yield self._piece("response.output_item.added", added, counted=True, calls=call_pieces(delta))
            elif isinstance(delta, CallArguments):
                told = self._at(item) | {"delta": delta.fragment}
                event = "response.function_call_arguments.delta"
                yield self._piece(event, told, counted=True, calls=call_pieces(delta))
                arguments += delta.fragment
        yield self._piece("response.function_call_arguments.done", self._at(item) | {"arguments": arguments})
        yield self._done(item | {"arguments": arguments})

    def _at(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self._output)}

    def _new_item(self, kind: str) -> dict[str, Any]:
        number = f"{self._envelope.id[-12:]}{len(self._output)}"
        if kind == "reasoning_content":
            return {"type": "reasoning", "id": f"rs_{number}", "summary": []}
        if kind == "function_call":
            return {"type": "function_call", "id": f"fc_{number}", "status": "in_progress"}
        return {"type": "message", "id": f"msg_{number}", "status": "in_progress", "role": "assistant", "content": []}

    def _done(self, item: dict[str, Any]) -> Piece:
        if "status" in item:
            item["status"] = "completed"
        index = len(self._output)
        self._output.append(item)
        return self._piece("response.output_item.done", {"output_index": index, "item": item})

    def _piece(
        self,
        kind: str,
        fields: dict[str, Any],
        *,
        counted: bool = False,
        text: str = "",
        fault: str | None = None,
        calls: tuple[CallPiece, ...] = (),
    ) -> Piece:
        data = _event({"type": kind, "sequence_number": self._sequence} | fields)
        self._sequence += 1
        return Piece(data, counted, text, fault, calls)


def _item_kind(delta: Delta) -> str | int:
    """What tells a choice's items apart: the field of a text, the number of a call."""
    return delta.field if isinstance(delta, TextPiece) else delta.index


def _usage_of(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": prompt + completion,
    }


def _event(data: dict[str, Any]) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
