"""One answer of a provider, streamed or not: from the bytes of its body to deltas, and whether it is whole. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from deltafan.errors import CompletionError
from deltafan.events import Delta, Done
from deltafan.llm import failures
from deltafan.llm.decode import ChunkDecoder, parse_json
from deltafan.llm.providers import Provider
from deltafan.llm.request import Request
from deltafan.llm.responses import ResponsesDecoder
from deltafan.llm.seam import Ended
from deltafan.sse import MAX_EVENT_BYTES, Decoder, EventTooLargeError, ServerSentEvent

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed: room for the images in one. Our own bound."""
_DONE = b"[DONE]"
_MAX_ERROR_BODY = 64 * 1024


def answer_to(request: Request, provider: Provider, secret: str = "") -> Answer | WholeAnswer:
    """What reads the answer to a request.

    :param secret: the key in use, which no error may show.
    """
    if not request.streaming:
        return WholeAnswer(ResponsesDecoder() if request.api == "responses" else ChunkDecoder(), secret)
    if request.api == "responses":
        return _ResponsesAnswer(provider, ResponsesDecoder(), secret, max_event_bytes=MAX_BODY)
    return Answer(provider, ChunkDecoder(), secret)


def end_of(chunks: ChunkDecoder | ResponsesDecoder) -> Done:
    """The last event of an answer. Of several choices it has each one's finish reason."""
    reasons = chunks.finish_reasons if isinstance(chunks, ChunkDecoder) else {}
    if len(reasons) > 1:
        return Ended(chunks.finish_reason, finish_reasons=reasons)
    return Done(chunks.finish_reason)


class Answer:
    """Reads an answer that is streamed."""

    arriving = False
    """Only of an answer that is not streamed: its body has begun to come."""

    def __init__(
        self,
        provider: Provider,
        decoder: ChunkDecoder | ResponsesDecoder,
        secret: str = "",
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        self.chunks = decoder
        self.done = False
        """The last event was read."""
        self._secret = secret
        self._done_is_finish = provider.done_without_finish_reason
        self._events = Decoder(max_event_bytes)
        self._body: bytearray | None = None

    def begin(self, content_type: str) -> None:
        if content_type.lower().startswith("application/json"):
            self._body = bytearray()  # most likely an error that was sent with the wrong status

    @property
    def complete(self) -> bool:
        """All of the text has come. Usage may be missing."""
        return self.chunks.finished or (self.done and self._done_is_finish and self.chunks.begun)

    def read(self, data: bytes | None) -> list[ServerSentEvent]:
        """The events in these bytes. `None` is the end of a body that was closed in good order: its last event counts
        even without its blank line.

        :raises CompletionError: `malformed_stream`: an event is too large.
        """
        if data is None:  # of a complete answer only usage can be missing, so that a cut event costs no more than that
            return [last for last in self._events.flush() if not self.complete or _is_json(last.data)]
        if self._body is not None and len(self._body) < _MAX_ERROR_BODY:
            self._body += data
        try:
            return self._events.feed(data)
        except EventTooLargeError as error:
            raise failures.malformed(str(error)) from None

    def decode(self, sse: ServerSentEvent) -> list[Delta]:
        """The deltas of one event. After them, look with `raise_error` for a failure that it told of.

        :raises CompletionError: `malformed_stream`.
        """
        data = sse.data
        if self.done or not data:
            return []
        if data.startswith(_DONE):
            self.done = True
            return []
        if sse.event == "error":
            self.chunks.error = _error_value(data)
            return []
        return self.chunks.decode(parse_json(data))

    def raise_error(self) -> None:
        """:raises CompletionError: the provider has sent an error."""
        _raise_error(self.chunks, self._secret)

    def raise_unless_complete(self) -> None:
        """:raises CompletionError: the body has ended, but the answer had not."""
        if self.complete:
            return
        if self._body is None:
            raise failures.malformed("it ended without a finish reason")
        try:
            body = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            raise failures.malformed("it is not an event stream") from None
        if isinstance(body, dict) and body.get("error"):
            raise failures.from_body(body, secret=self._secret)
        raise failures.malformed("it is one JSON value, not an event stream")


class _ResponsesAnswer(Answer):
    """Its last event holds the whole response, and no `[DONE]` has to follow."""

    def decode(self, sse: ServerSentEvent) -> list[Delta]:
        deltas = super().decode(sse)
        self.done = self.done or self.chunks.finished
        return deltas


class WholeAnswer:
    """Reads an answer that comes as one JSON value. What it says is the same as of an answer that is streamed."""

    done = False

    def __init__(self, decoder: ChunkDecoder | ResponsesDecoder, secret: str = "") -> None:
        self.chunks = decoder
        self.complete = False
        self.arriving = False
        """More than white space has come, with which some providers keep a connection alive."""
        self._secret = secret
        self._body = bytearray()

    def begin(self, content_type: str) -> None:
        """Any content type will do, if it is JSON."""

    def read(self, data: bytes | None) -> list[ServerSentEvent]:
        """The whole body as one event, when it has ended.

        :raises CompletionError: `malformed_stream`: it is too large.
        """
        if data is None:
            return [ServerSentEvent(bytes(self._body), "message", "")]
        self._body += data
        if len(self._body) > MAX_BODY:
            raise failures.malformed(f"it is larger than {MAX_BODY} bytes")
        self.arriving = self.arriving or not data.isspace()
        return []

    def decode(self, sse: ServerSentEvent) -> list[Delta]:
        """:raises CompletionError: `malformed_stream`."""
        deltas = self.chunks.whole(parse_json(sse.data, "the answer"))
        self.complete = True
        return deltas

    def raise_error(self) -> None:
        """:raises CompletionError: the provider has sent an error instead of an answer."""
        _raise_error(self.chunks, self._secret)

    def raise_unless_complete(self) -> None:
        """Nothing to tell: what is not complete is no JSON."""


def _raise_error(chunks: ChunkDecoder | ResponsesDecoder, secret: str) -> None:
    if chunks.error is not None:
        raise failures.from_body(chunks.error, secret=secret)


def _is_json(data: bytes) -> bool:
    try:
        parse_json(data)
    except CompletionError:
        return False
    return True


def _error_value(data: bytes) -> Any:
    """The error in an `error` event: JSON, or if it is not, text."""
    try:
        return parse_json(data) or {}
    except CompletionError:
        return data.decode("utf-8", "replace")
