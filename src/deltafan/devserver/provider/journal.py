"""The journal: what the provider was asked, what it sent, and how that ended. Bounded in records and in bytes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.sent import SentCall, add_call

MAX_RECORDS = 1000
MAX_TEXT_BYTES = 64 << 10
"""UTF-8 bytes of the text that a record keeps."""
MAX_PARAMS_BYTES = 4 << 10
"""JSON bytes of a request's parameter that a record keeps; of a longer one it keeps the size."""
MAX_PARAMS = 64
MAX_PROMPTS = 10_000
"""Prompts whose requests are counted, for faults that are limited to the first few."""

RUNNING, FINISHED, CLIENT_CLOSED, REJECTED, STOPPED = "running", "finished", "client_closed", "rejected", "stopped"

_SECRETS = frozenset({"api_key", "apikey", "authorization", "access_token", "token", "secret", "password"})


@dataclass(slots=True)
class RequestRecord:
    """One request. Changes until `ended` is set."""

    id: str
    """The completion's id, which is also the answer's `x-request-id`."""
    started: float = field(default_factory=time.time)
    """Unix time in seconds, as `ended` is."""
    ended: float | None = None
    model: str = ""
    stream: bool = False
    messages_digest: str = ""
    key: str = ""
    """What tells prompts apart: the digest of the messages without a prefill, and the caller's `key` if it gave one."""
    params: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[str] = ()
    """The faults that were active, whether or not the stream got so far."""
    status: int | None = None
    outcome: str = RUNNING
    """`running`, `finished`, `client_closed`, `fault:<name>`, `rejected` (a bad request), `stopped` (the server)."""
    client_closed: bool = False
    """The client closed the connection before the answer ended. Beside `fault:stall`: the client gave up."""
    error: str | None = None
    chunks: int = 0
    """Chunks handed to the connection."""
    text_length: int = 0
    """Characters of choice 0's text handed to the connection."""
    tool_calls: list[SentCall] = field(default_factory=list)
    """The tool calls of choice 0 that were handed to the connection, the first 128."""
    usage: Mapping[str, int] | None = None
    """The usage that was handed to the connection, by chat completions' names; `None`: none was."""
    finish_reason: str | None = None
    """Of choice 0, once it was handed to the connection: the answer came to its end."""
    _text: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def text(self) -> str:
        """The text of choice 0 that was sent, its first 64 KiB."""
        return self._text.decode(errors="ignore")

    def sent(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.chunks += piece.counted
            if piece.text:
                self.add_text(piece.text)
            for call in piece.calls:
                add_call(self.tool_calls, call)
            self.usage = piece.usage or self.usage
            self.finish_reason = piece.finish_reason or self.finish_reason
            if piece.fault:
                self.fail(piece.fault)

    def fail(self, fault: str) -> None:
        """A fault has come to pass; the first one is the outcome."""
        if self.outcome == RUNNING:
            self.outcome = f"fault:{fault}"

    def add_text(self, text: str) -> None:
        self.text_length += len(text)
        if len(self._text) < MAX_TEXT_BYTES:
            self._text += text.encode()[: MAX_TEXT_BYTES - len(self._text)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "started": self.started,
            "ended": self.ended,
            "model": self.model,
            "stream": self.stream,
            "messages_digest": self.messages_digest,
            "key": self.key,
            "params": self.params,
            "faults": list(self.faults),
            "status": self.status,
            "outcome": self.outcome,
            "client_closed": self.client_closed,
            "error": self.error,
            "chunks": self.chunks,
            "text_length": self.text_length,
            "text": self.text,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "usage": self.usage,
            "finish_reason": self.finish_reason,
        }


class Journal:
    """The most recent requests, oldest first."""

    def __init__(self) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=MAX_RECORDS)
        self._counts: OrderedDict[str, int] = OrderedDict()
        self.forgotten = 0
        """Records that made room for newer ones."""
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def records(self) -> list[RequestRecord]:
        return list(self._records)

    def add(self, record: RequestRecord) -> None:
        self.forgotten += len(self._records) == MAX_RECORDS
        self._records.append(record)
        self.changed()

    def count(self, key: str) -> int:
        """How many requests for this prompt there have been, this one counted. Old prompts are forgotten."""
        nth = self._counts.pop(key, 0) + 1
        self._counts[key] = nth
        if len(self._counts) > MAX_PROMPTS:
            self._counts.popitem(last=False)
        return nth

    def end(self, record: RequestRecord, outcome: str) -> None:
        """Closes a record; the outcome stays that of a fault, if one came first."""
        if record.outcome == RUNNING:
            record.outcome = outcome
        record.ended = time.time()
        self.changed()

    def clear(self) -> int:
        """Forgets every record and every count. Answers how many records there were."""
        number = len(self._records)
        self._records.clear()
        self._counts.clear()
        return number

    def changed(self) -> None:
        """Wakes those who wait in `until`."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, predicate: Callable[[list[RequestRecord]], bool], timeout: float = 10.0) -> None:
        """Returns as soon as the records fulfil the predicate, which is asked again after each change.

        :raises TimeoutError: they do not within `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while not predicate(self.records):
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter


def without_secrets(params: Mapping[str, object]) -> dict[str, Any]:
    """A request's parameters as a record keeps them: no value of a name that is a secret's, nothing long."""
    return {name[:256]: _kept(name, value) for name, value in list(params.items())[:MAX_PARAMS]}


def _kept(name: str, value: object) -> object:
    value = _redacted(name, value)
    size = len(orjson.dumps(value))
    return value if size <= MAX_PARAMS_BYTES else f"({size} bytes)"


def _redacted(name: str, value: object) -> object:
    if name.lower().replace("-", "_") in _SECRETS:
        return "(redacted)"
    if isinstance(value, dict):
        return {key: _redacted(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted("", item) for item in value]
    return value
