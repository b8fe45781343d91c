"""One answer of a provider: from the bytes of its body to deltas, and whether it is whole. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from deltafan.errors import CompletionError
from deltafan.events import Delta
from deltafan.llm import failures
from deltafan.llm.decode import ChunkDecoder, parse_json
from deltafan.llm.providers import Provider
from deltafan.sse import Decoder, EventTooLargeError, ServerSentEvent

_DONE = b"[DONE]"
_MAX_ERROR_BODY = 64 * 1024


class Answer:
    """Reads one answer.

    :param secret: the key in use, which no error may show.
    """

    def __init__(self, provider: Provider, secret: str = "") -> None:
        self.chunks = ChunkDecoder()
        self.done = False
        """`[DONE]` was read."""
        self._secret = secret
        self._done_is_finish = provider.done_without_finish_reason
        self._events = Decoder()
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
        if data is None:
            return self._events.flush()
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
        if self.chunks.error is not None:
            raise failures.from_body(self.chunks.error, secret=self._secret)

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


def _error_value(data: bytes) -> Any:
    """The error in an `error` event: JSON, or if it is not, text."""
    try:
        return parse_json(data) or {}
    except CompletionError:
        return data.decode("utf-8", "replace")
