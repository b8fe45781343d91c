"""Does the log's final attempt say what the provider sent: text, tool calls and usage, turn by turn?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from deltafan.devserver.provider.journal import RequestRecord
from deltafan.devserver.provider.sent import MAX_CALLS
from deltafan.events import Done, Event, Meta, ToolResult, Usage
from deltafan.transcript import Transcript

WELL: frozenset[str] = frozenset({"stop", "length", "tool_calls", "max_iterations", "content_filter"})
"""Finish reasons of an attempt that took all that the provider sent."""
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")


@dataclass(slots=True)
class Attempt:
    """The last attempt of a log: what each turn of it said, and how it ended. One without tools has one turn."""

    turns: list[Transcript] = field(default_factory=list)
    usage: Usage | None = None
    done: Done | None = None
    patched: bool = False
    """Another model went on from the text of one that failed: what one of them sent is not the whole."""


def final_attempt(events: Iterable[Event]) -> Attempt:
    """Read the last attempt of a log. Text that an earlier attempt left to it is not its own."""
    attempt = Attempt()
    after_results = False
    for event in events:
        match event:
            case Meta(id=id) if id is not None and id.seq == 0:
                attempt, after_results = Attempt([Transcript()]), False
            case Meta(continued=True):
                attempt.patched = True
            case Meta():  # another model took over: all is said again
                attempt.turns, after_results = [Transcript()], False
            case ToolResult():
                after_results = True
            case Usage():
                attempt.usage = event
            case Done():
                attempt.done = event
                if after_results and event.finish_reason not in ("tool_calls", "max_iterations"):
                    attempt.turns.append(Transcript())  # the model had nothing to say to the results
            case _:
                if after_results:
                    attempt.turns.append(Transcript())
                    after_results = False
                if attempt.turns:
                    attempt.turns[-1].add(event)
    return attempt


def sent_problems(
    events: Iterable[Event], records: Sequence[RequestRecord], *, overlaps: bool = False, forgotten: bool = False
) -> list[str]:
    """Where a log's final attempt and the provider's own record of its last answers differ.

    Nothing is said of an attempt that did not end well (its followers saw a part), of one that no request was made
    for (the cache answered), and of one in which two models shared a text.

    :param records: the job's requests.
    :param overlaps: a process that was thought lost may have asked last, in vain: any answer may be the final one.
    :param forgotten: the provider's journal was full, and may have let go of some of them.
    """
    attempt = final_attempt(events)
    if attempt.done is None or attempt.done.finish_reason not in WELL or attempt.patched or not records:
        return []
    whole = [record for record in sorted(records, key=lambda r: r.started) if record.finish_reason is not None]
    turns = len(attempt.turns)
    if len(whole) < turns:
        if forgotten:
            return []
        return [f"the final attempt has {turns} whole answers, the provider sent {len(whole)}"]
    last = len(whole) - turns
    found = [
        _turn_problems(attempt.turns, whole[place : place + turns]) + _usage_problems(attempt, whole[place:][:turns])
        for place in (range(last, -1, -1) if overlaps else [last])
    ]
    return min(found, key=len)


def _turn_problems(turns: Sequence[Transcript], records: Sequence[RequestRecord]) -> list[str]:
    found: list[str] = []
    for turn, record in zip(turns, records, strict=True):
        if len(turn.text) != record.text_length or not turn.text.startswith(record.text):
            found.append(
                f"the final attempt says {turn.text[:80]!r} ({len(turn.text)} characters), the provider sent "
                f"{record.text[:80]!r} ({record.text_length} characters)"
            )
        said = [(call.id, call.name, len(call.arguments)) for call in turn.tool_calls[:MAX_CALLS]]
        sent = [(call.id, call.name, call.arguments_length) for call in record.tool_calls]
        pieces = zip(turn.tool_calls, record.tool_calls, strict=False)
        if said != sent or not all(ours.arguments.startswith(theirs.arguments) for ours, theirs in pieces):
            found.append(f"the final attempt calls {said!r:.200}, the provider sent {sent!r:.200}")
    return found


def _usage_problems(attempt: Attempt, records: Sequence[RequestRecord]) -> list[str]:
    usage = attempt.usage
    if usage is None:
        return ["the final attempt has no usage"]
    missing = sum(record.usage is None for record in records)
    if missing:
        told = f"{missing} of {len(records)} answers came without usage"
        return [f"the usage is said to be reported, and {told}"] if usage.source == "reported" else []
    if usage.source != "reported":
        return [f"the usage is {usage.source}, and the provider reported it"]
    sums = {name: sum((record.usage or {}).get(name, 0) for record in records) for name in _COUNTS}
    said = {name: getattr(usage, name) for name in _COUNTS}
    differing = [f"{name} {said[name]}, sent {sums[name]}" for name in _COUNTS if (said[name] or 0) != sums[name]]
    return [f"the usage differs: {'; '.join(differing)}"] if differing else []
