"""Server-sent events: an encoder and an incremental decoder, no I/O.

Follows the event stream format of the WHATWG HTML standard (section 9.2): a line ends at LF, CR or CRLF and at nothing
else, so U+2028 and its like are text. Data stays bytes from end to end: it is not decoded here, so that invalid UTF-8
passes through and a JSON parser can read it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Default bound on one event. A chat-completion chunk is well under 100 KiB; an image in a chunk is a few MiB."""

_BOM = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS = 15


class EventTooLargeError(ValueError):
    """An event is larger than the decoder's bound. The decoder is of no further use."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit} bytes")
        self.limit = limit


class ServerSentEvent(NamedTuple):
    """One dispatched event."""

    data: bytes
    """The `data` lines, joined by LF."""
    event: str = "message"
    id: str = ""
    """The last event id the stream has set, which holds for all later events until it is set anew."""


class Decoder:
    """Turns the bytes of an event stream, split anywhere, into events.

    :param max_event_bytes: the bound on one event, in bytes, counted over all lines since the last blank one.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        """The reconnection time in milliseconds that the stream last asked for."""
        self._limit = max_event_bytes
        self._held: list[bytes] = []  # pieces of a line whose end has not arrived
        self._held_bytes = 0
        self._data: list[bytes] = []
        self._event = ""
        self._event_bytes = 0  # of the complete lines of the event being read
        self._started = False
        self._after_cr = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete.

        :raises EventTooLargeError: an event, complete or not, is over the bound.
        """
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")  # the LF of a CRLF that was split
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._hold(data)
            return []
        if self._held:
            data = b"".join((*self._held, data))
            self._held.clear()
            self._held_bytes = 0
        if not self._started:
            self._started = True
            data = data.removeprefix(_BOM)
        if self._event_bytes or len(data) > self._limit:
            return self._feed_lines(data)
        return self._feed_blocks(data)

    def flush(self) -> list[ServerSentEvent]:
        """The event that the end of the stream left unfinished, if it has data.

        The standard discards it, for the stream may have been cut in its middle. A reader who knows that the stream
        was closed in good order, or who can tell whole data from cut data, may look at it.
        """
        out: list[ServerSentEvent] = []
        line = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        self._lines((line if self._started else line.removeprefix(_BOM), b""), out)
        return out

    def _feed_blocks(self, data: bytes) -> list[ServerSentEvent]:
        """The hot path: no event is half read, so a blank line is the only thing to look for."""
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        out: list[ServerSentEvent] = []
        append = out.append
        last_id = self.last_event_id
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block:
                append(ServerSentEvent(block[6:], "message", last_id))
            else:
                self._lines((*block.split(b"\n"), b""), out)
                last_id = self.last_event_id
        if b"\n" in rest:
            *lines, rest = rest.split(b"\n")
            self._lines(lines, out)
        if rest:
            self._hold(rest)
        return out

    def _feed_lines(self, data: bytes) -> list[ServerSentEvent]:
        *lines, rest = data.split(b"\n")
        out: list[ServerSentEvent] = []
        self._lines(lines, out)
        if rest:
            self._hold(rest)
        return out

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)
        self._check(self._event_bytes + self._held_bytes)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLargeError(self._limit)

    def _lines(self, lines: Iterable[bytes], out: list[ServerSentEvent]) -> None:
        for line in lines:
            if line:
                self._event_bytes += len(line) + 1
                self._check(self._event_bytes)
                self._field(line)
            else:
                self._dispatch(out)

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")  # a comment has the empty name
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self.last_event_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry = int(value)

    def _dispatch(self, out: list[ServerSentEvent]) -> None:
        if self._data:
            out.append(ServerSentEvent(b"\n".join(self._data), self._event or "message", self.last_event_id))
            self._data = []
        self._event = ""
        self._event_bytes = 0


def encode(data: bytes, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002
    """One event. CR, LF and CRLF in the data become line ends of the event, which a reader gets back as LF.

    :raises ValueError: the event name or id holds a line end, or the id a NUL: the format cannot carry them.
    """
    head = b""
    if id is not None:
        head = b"id: " + _single_line("id", id) + b"\n"
        if b"\0" in head:
            raise ValueError("id: a NUL cannot be part of an event id")
    if event is not None:
        head += b"event: " + _single_line("event", event) + b"\n"
    return head + _prefixed(b"data: ", data) + b"\n"


def comment(text: str = "") -> bytes:
    """A comment: readers ignore it, and the connection shows life."""
    return _prefixed(b": ", text.encode()) + b"\n"


def retry(milliseconds: int) -> bytes:
    """Asks the reader to wait that long before it connects again.

    :raises ValueError: the time is negative.
    """
    if milliseconds < 0:
        raise ValueError("retry: the time must not be negative")
    return b"retry: %d\n\n" % milliseconds


def _prefixed(prefix: bytes, data: bytes) -> bytes:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n" in data:
        data = data.replace(b"\n", b"\n" + prefix)
    return prefix + data + b"\n"


def _single_line(field: str, value: str) -> bytes:
    if "\n" in value or "\r" in value:
        raise ValueError(f"{field}: must be one line")
    return value.encode()
