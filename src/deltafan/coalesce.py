"""Merging adjacent deltas: the only transformation that events undergo.

Text (or reasoning, or refusal) of the same choice merges, and so do argument fragments of one tool call; nothing
merges across another event, and the concatenation is equal. A piece of a tool call that brings an id or a name begins
a new run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from deltafan.events import Delta, Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta

MAX_RUN_CHARS = 64 * 1024
"""A run ends at this many characters, so that no frame grows without bound."""


def _continues(run: Event, last: Event, event: Event) -> bool:
    if last.id is not None and event.id is not None and last.id.attempt != event.id.attempt:
        return False
    match event:
        case TextDelta() | ReasoningDelta() | RefusalDelta():
            return type(run) is type(event) and getattr(run, "choice", None) == event.choice
        case ToolCallDelta(call_id=None, name=None):
            return isinstance(run, ToolCallDelta) and (run.index, run.choice) == (event.index, event.choice)
        case _:
            return False


def _close(run: Delta, pieces: list[str], last: Event) -> Event:
    if len(pieces) == 1:
        return run
    text = "".join(pieces)
    first = None if run.id is None else run.first or run.id
    if isinstance(run, ToolCallDelta):
        return replace(run, arguments=text, id=last.id, first=first)
    return replace(run, text=text, id=last.id, first=first)


def coalesce(events: Iterable[Event]) -> Iterator[Event]:
    """Merge adjacent deltas. A merged event with ids carries the last id of its run, and the first as `first`."""
    run: Delta | None = None
    last: Event | None = None
    pieces: list[str] = []
    size = 0
    for event in events:
        if not isinstance(event, TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta):
            if run is not None and last is not None:
                yield _close(run, pieces, last)
            run = None
            yield event
            continue
        piece = event.arguments if isinstance(event, ToolCallDelta) else event.text
        if run is not None and last is not None and size < MAX_RUN_CHARS and _continues(run, last, event):
            pieces.append(piece)
        else:
            if run is not None and last is not None:
                yield _close(run, pieces, last)
            run, pieces, size = event, [piece], 0
        last = event
        size += len(piece)
    if run is not None and last is not None:
        yield _close(run, pieces, last)
