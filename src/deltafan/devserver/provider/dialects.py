"""The interfaces that the provider speaks, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from deltafan.devserver.provider.answer import Answer, compose
from deltafan.devserver.provider.api_errors import stream_error
from deltafan.devserver.provider.chat import ChatRequest, parse_chat_request
from deltafan.devserver.provider.chunks import Envelope, Piece, call_pieces, completion_body, stream_pieces, usage_of
from deltafan.devserver.provider.embeddings import embeddings_body, parse_embeddings_request
from deltafan.devserver.provider.faults import Fault
from deltafan.devserver.provider.responses import error_event, response_body, response_pieces
from deltafan.devserver.provider.responses_request import parse_responses_request
from deltafan.devserver.provider.script import Script
from deltafan.devserver.provider.sent import CallPiece, counts


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that does not stream."""

    body: bytes
    chunks: int = 0
    text: str = ""
    fault: str | None = None
    """The fault that it shows to the client."""
    calls: tuple[CallPiece, ...] = ()
    """The tool calls of choice 0."""
    usage: Mapping[str, int] | None = None
    finish_reason: str | None = None
    """Of choice 0."""


@dataclass(frozen=True, slots=True)
class Dialect:
    prefix: str
    """What the ids of its answers begin with."""
    parse: Callable[[bytes], ChatRequest]
    whole: Callable[[Script, ChatRequest, Mapping[str, Fault], Envelope], Whole]
    pieces: Callable[[Answer, Envelope], Iterator[Piece]] = stream_pieces
    error: bytes = b""
    """An error as an event of a stream."""
    replays: bool = True
    """It can answer with a recorded stream."""


def _whole(body: Callable[[Answer, Envelope], bytes]) -> Callable[..., Whole]:
    def whole(script: Script, request: ChatRequest, faults: Mapping[str, Fault], envelope: Envelope) -> Whole:
        answer = compose(script, request, faults, envelope.id)
        shown = next((choice.fault for choice in answer.choices if choice.fault), None)
        first = answer.choices[0]
        return Whole(
            body(answer, envelope),
            answer.completion_tokens,
            first.joined("content"),
            shown,
            tuple(piece for delta in first.deltas for piece in call_pieces(delta)),
            counts(usage_of(answer)) if envelope.usage else None,
            first.finish_reason,
        )

    return whole


def _embedded(script: Script, request: ChatRequest, faults: Mapping[str, Fault], envelope: Envelope) -> Whole:
    words = request.prompt_words
    used = counts({"prompt_tokens": words, "total_tokens": words}) if envelope.usage else None
    return Whole(embeddings_body(request, usage=envelope.usage), usage=used)


CHAT = Dialect(
    "chatcmpl-",
    parse_chat_request,
    _whole(completion_body),
    stream_pieces,
    b"data: " + stream_error().body() + b"\n\n",
)
RESPONSES = Dialect("resp_", parse_responses_request, _whole(response_body), response_pieces, error_event())
EMBEDDINGS = Dialect("embd-", parse_embeddings_request, _embedded, replays=False)
"""Nothing of it streams, and no script changes its vectors; faults do."""
