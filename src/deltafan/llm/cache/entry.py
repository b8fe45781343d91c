"""What is stored of a completion, and its JSON.

    {"v":1,"generations":[{"created":1767225600.0,"provider":"openai","model":"gpt-5-mini","response_id":null,
     "events":[{"type":"text_delta","text":"Hello","pieces":[3,2]}],
     "usage":{…},"finish_reason":"stop"}]}

Adjacent deltas are stored merged, with the lengths of the pieces they came in, so that a replay can keep their pace. A
failure is stored as `{"created":…,"error":{…}}`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args

import orjson

from deltafan import wire
from deltafan.coalesce import MAX_RUN_CHARS
from deltafan.errors import CompletionError, DeltafanError
from deltafan.events import (
    Delta,
    Done,
    Event,
    FinishReason,
    Meta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from deltafan.llm.cache.protocol import CorruptEntry
from deltafan.llm.seam import Ended, Started

VERSION: Final = 1
GENERATIONS: Final = 8
"""Generations of one entry that `regen_cache` keeps; the oldest goes first."""
COMPLETE: Final[frozenset[FinishReason]] = frozenset({"stop", "length", "tool_calls", "content_filter"})
"""How a stream ends that is worth keeping; the others were cut short."""
LASTING: Final = frozenset({"bad_request", "context_length", "content_filter", "model_not_found"})
"""Failures that may be stored: the same request meets them again, whoever asks. The others are of one caller's key or
money (`authentication`, `permission`, `quota`), or they pass (`rate_limit`, `connection`, `server_error`, timeouts)."""
_STORED: Final = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallDelta, Meta, ToolResult)


@dataclass(frozen=True, slots=True)
class Entry:
    """One complete answer."""

    created: float
    """Unix time in seconds."""
    provider: str
    model: str
    """As the provider named it; after a fallback, the one that answered."""
    response_id: str | None
    events: tuple[Event, ...]
    """Everything before the usage, adjacent deltas merged."""
    pieces: tuple[tuple[int, ...], ...]
    """For each event the lengths of the pieces that it came in; empty for what is no delta."""
    usage: Usage
    """What the completion used and cost when it was made. A replay costs nothing and says so."""
    finish_reason: FinishReason
    finish_reasons: Mapping[int, FinishReason] = field(default_factory=dict)
    """Of each of several choices its own; empty for one choice."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that `cache_errors` stored."""

    created: float
    code: str
    message: str
    status: int | None
    provider: str | None
    model: str | None

    def error(self) -> CompletionError:
        return CompletionError(self.code, self.message, status=self.status, provider=self.provider, model=self.model)


@dataclass(slots=True)
class _Run:
    """An event, and for deltas the pieces of those that go on with it."""

    first: Event
    pieces: list[str] = field(default_factory=list)
    length: int = 0

    def merged(self) -> Event:
        if isinstance(self.first, ToolCallDelta):
            return replace(self.first, arguments="".join(self.pieces))
        if isinstance(self.first, TextDelta | ReasoningDelta | RefusalDelta):
            return replace(self.first, text="".join(self.pieces))
        return self.first


class Recorder:
    """Listens to a stream, and makes an entry of one that is complete."""

    def __init__(self, max_bytes: int, provider: str = "", model: str = "") -> None:
        self._max_bytes = self._room = max_bytes
        self._runs: list[_Run] = []
        self._started = Started(provider=provider, model=model)  # until the stream says better
        self._usage: Usage | None = None
        self._done: Done | None = None
        self._unknown = False

    def add(self, event: Event) -> None:
        if isinstance(event, Meta) and (event.restart or event.continued):
            self._started = replace(self._started, deployment="")  # another than until now, which may say itself
        match event:
            case Started():
                self._started = event
            case Usage():
                self._usage = event
            case Done():
                self._done = event
            case Meta(restart=True):  # what came before it is void
                self._started = replace(self._started, provider=event.provider, model=event.model, response_id=None)
                self._runs.clear()
                self._room = self._max_bytes
            case TextDelta() | ReasoningDelta() | RefusalDelta() | ToolCallDelta():
                piece = _text(event)
                self._room -= len(piece) + 1  # a stream of empty pieces has an end, too
                run = self._runs[-1] if self._runs else None
                if run is not None and run.length < MAX_RUN_CHARS and _continues(run.first, event):
                    run.pieces.append(piece)
                    run.length += len(piece)
                else:
                    self._runs.append(_Run(event, [piece], len(piece)))
            case _:
                self._room -= len(wire.dumps(wire.payload(event)))
                self._unknown |= not isinstance(event, _STORED)
                self._runs.append(_Run(event))
        if self.oversized:
            self._runs.clear()

    @property
    def deployment(self) -> str | None:
        """Which of a router's deployments gave the answer, or the end of it."""
        return self._started.deployment

    @property
    def oversized(self) -> bool:
        return self._room < 0

    @property
    def complete(self) -> bool:
        """The stream came to its end."""
        return self._usage is not None and self._done is not None and self._done.finish_reason in COMPLETE

    def entry(self) -> Entry | None:
        """`None` if the stream was cut short, was too large, or had events that cannot be stored."""
        if not self.complete or self.oversized or self._unknown or self._usage is None or self._done is None:
            return None
        return Entry(
            created=time.time(),
            provider=self._started.provider,
            model=self._started.model,
            response_id=self._started.response_id,
            events=tuple(run.merged() for run in self._runs),
            pieces=tuple(tuple(map(len, run.pieces)) for run in self._runs),
            usage=self._usage,
            finish_reason=self._done.finish_reason,
            finish_reasons=self._done.finish_reasons if isinstance(self._done, Ended) else {},
        )


def replay(entry: Entry, *, in_pieces: bool = False) -> Iterator[Event]:
    """The entry as a stream. Its usage tells the tokens of the answer and a cost of 0: nothing was asked, or is owed.

    :param in_pieces: deltas as they came, and not merged.
    """
    yield Started(
        provider=entry.provider,
        model=entry.model,
        cached=True,
        created=int(entry.created),
        response_id=entry.response_id,
    )
    for event, sizes in zip(entry.events, entry.pieces, strict=True):
        if in_pieces and isinstance(event, Delta):
            yield from _split(event, sizes)
        else:
            yield event
    yield replace(entry.usage, cost_usd=0.0)
    if entry.finish_reasons:
        yield Ended(finish_reason=entry.finish_reason, finish_reasons=entry.finish_reasons)
    else:
        yield Done(finish_reason=entry.finish_reason)


def encode(generations: Sequence[Entry | Failure]) -> bytes:
    """JSON bytes; of more than `GENERATIONS` the newest."""
    return wire.dumps({"v": VERSION, "generations": [_object(entry) for entry in generations[-GENERATIONS:]]})


def decode(data: bytes) -> tuple[Entry | Failure, ...]:
    """The generations, oldest first; at least one.

    :raises CorruptEntry: it is nothing that `encode` makes.
    """
    try:
        raw = orjson.loads(data)
        if raw["v"] != VERSION or not raw["generations"]:
            raise CorruptEntry("another version's entry, or an empty one")
        return tuple(_generation(one) for one in raw["generations"])
    except (KeyError, TypeError, ValueError, AttributeError, DeltafanError) as error:
        raise CorruptEntry(f"not an entry: {type(error).__name__}") from None


def _text(event: Delta) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else event.text


def _continues(first: Event, event: Delta) -> bool:
    """Whether a delta goes on with the run of another; the rule of `coalesce`."""
    if isinstance(event, ToolCallDelta):
        return (
            isinstance(first, ToolCallDelta)
            and (first.choice, first.index) == (event.choice, event.index)
            and event.call_id is None
            and event.name is None
        )
    return type(first) is type(event) and getattr(first, "choice", None) == event.choice


def _split(run: Delta, sizes: Sequence[int]) -> Iterator[Delta]:
    text, start = _text(run), 0
    for size in sizes:
        piece = text[start : start + size]
        if isinstance(run, ToolCallDelta):
            yield replace(run, arguments=piece)
            run = replace(run, call_id=None, name=None)  # they come once
        else:
            yield replace(run, text=piece)
        start += size


def _object(entry: Entry | Failure) -> dict[str, Any]:
    if isinstance(entry, Failure):
        error = {name: getattr(entry, name) for name in ("code", "message", "status", "provider", "model")}
        return {"created": entry.created, "error": error}
    return {
        "created": entry.created,
        "provider": entry.provider,
        "model": entry.model,
        "response_id": entry.response_id,
        "events": [
            {"type": event.type, **wire.payload(event), **({"pieces": sizes} if sizes else {})}
            for event, sizes in zip(entry.events, entry.pieces, strict=True)
        ],
        "usage": wire.payload(entry.usage),
        "finish_reason": entry.finish_reason,
        **(
            {"finish_reasons": {str(n): why for n, why in entry.finish_reasons.items()}} if entry.finish_reasons else {}
        ),
    }


def _generation(raw: dict[str, Any]) -> Entry | Failure:
    created = float(raw["created"])
    if "error" in raw:
        error = raw["error"]
        if not isinstance(error["message"], str) or error["code"] not in CompletionError.CODES:
            raise CorruptEntry("not a failure")
        return Failure(created, **error)
    events = [_event(one) for one in raw["events"]]
    usage = wire.from_object({"v": wire.VERSION, "type": "usage", **raw["usage"]})
    reasons = raw.get("finish_reasons", {})
    if not isinstance(usage, Usage) or not {raw["finish_reason"], *reasons.values()} <= set(get_args(FinishReason)):
        raise CorruptEntry("no usage, or no finish reason")
    return Entry(
        created=created,
        provider=str(raw["provider"]),
        model=str(raw["model"]),
        response_id=raw["response_id"],
        events=tuple(event for event, _ in events),
        pieces=tuple(sizes for _, sizes in events),
        usage=usage,
        finish_reason=raw["finish_reason"],
        finish_reasons={int(n): why for n, why in reasons.items()},
    )


def _event(raw: dict[str, Any]) -> tuple[Event, tuple[int, ...]]:
    event = wire.from_object({"v": wire.VERSION, **raw})
    sizes = tuple(raw.get("pieces", ()))
    if not isinstance(event, _STORED):
        raise CorruptEntry("an event of another type")
    if isinstance(event, Delta) and (not isinstance(_text(event), str) or sum(sizes) != len(_text(event))):
        raise CorruptEntry("a delta whose pieces are not its text")
    return event, sizes
