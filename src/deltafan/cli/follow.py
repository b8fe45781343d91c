"""Showing a job's events: text to standard output as it arrives, what happens around it to standard error."""

from __future__ import annotations

import time
from typing import Final

from deltafan.cli.output import err, note, print_line, printable, write
from deltafan.events import (
    Done,
    Error,
    Event,
    EventId,
    Meta,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from deltafan.transcript import Transcript
from deltafan.wire import dumps, encode

_FAILURES: Final = ("error", "cancelled", "expired")
_RESULT_CHARS: Final = 200


class FollowPrinter:
    """Shows events in their order.

    :param json: print each event as its line of JSON instead.
    """

    def __init__(self, *, json: bool) -> None:
        self.transcript = Transcript()
        self.last: EventId | None = None
        self.job: str | None = None
        self._json = json
        self._first_text: float | None = None
        self._open_line = False  # the text so far does not end its line
        self._open_note = False

    @property
    def failed(self) -> bool:
        done = self.transcript.done
        return done is not None and done.finish_reason in _FAILURES

    def add(self, event: Event) -> None:
        self.transcript.add(event)
        self.last = event.id or self.last
        self.job = event.job or self.job
        if isinstance(event, TextDelta) and self._first_text is None:
            self._first_text = time.monotonic()
        if self._json:
            if event.id is not None and event.job is not None:
                print_line(encode(event.job, event.id, event, event.first))
            return
        match event:
            case TextDelta(choice=0) | RefusalDelta(choice=0):
                self._end_note()
                write(event.text)
                self._open_line = not event.text.endswith("\n")
            case ReasoningDelta(choice=0):
                self._aside(event.text)
            case ToolCallDelta(choice=0):
                self._aside((f"\n{event.name} " if event.name else "") + event.arguments)
            case _:
                self._around(event)

    def _around(self, event: Event) -> None:
        """What is not output."""
        match event:
            case Meta(restart=True):
                self._note(f"{_who(event)}: begins anew; what came before is void")
            case Meta(continued=True):
                self._note(f"{_who(event)}: goes on from here")
            case ToolResult():
                said = event.error if event.error is not None else dumps(event.result).decode()
                self._note(f"{event.name} {'failed' if event.error is not None else 'gave'}: {said[:_RESULT_CHARS]}")
            case Error(will_retry=True):
                self._note(f"{event.code}: {event.message}; will be tried again")
            case Error():
                self.end_lines()
                err.print(f"{event.code}: {printable(event.message)}", style="red", markup=False)
            case Done():
                self.end_lines()
            case _:
                pass

    def summary(self, began: float | None = None) -> None:
        """One line on usage and timings.

        :param began: when the job was enqueued, by the monotonic clock, to show what the follower saw.
        """
        done, usage = self.transcript.done, self.transcript.usage
        if done is None:
            return
        parts = [done.finish_reason, *_tokens(usage)]
        first, total = done.timings.get("first_token"), done.timings.get("total")
        if began is not None:
            first = (self._first_text - began) * 1000 if self._first_text is not None else None
            total = (time.monotonic() - began) * 1000
        if first is not None:
            parts.append(f"first token {first / 1000:.2f} s")
        if total is not None:
            parts.append(f"total {total / 1000:.2f} s")
        speed = tokens_per_second(usage.completion_tokens if usage else None, done.timings)
        if speed is not None:
            parts.append(f"{speed:.1f} tokens/s")
        if usage is not None and usage.cost_usd is not None:
            parts.append(f"${usage.cost_usd:.6f}")
        self._note(" · ".join(parts), blank_before=not self._json)

    def _aside(self, text: str) -> None:
        """Reasoning and tool calls, dim, on standard error."""
        if self._open_line:
            write("\n")
            self._open_line = False
        err.print(printable(text), style="dim", markup=False, end="")
        self._open_note = not text.endswith("\n")

    def _note(self, text: str, *, blank_before: bool = False) -> None:
        self.end_lines()
        note(("\n" if blank_before else "") + printable(text))

    def end_lines(self) -> None:
        """Before anything else is said: what was begun on a line stays there."""
        self._end_note()
        if self._open_line:
            write("\n")
            self._open_line = False

    def _end_note(self) -> None:
        if self._open_note:
            err.print()
            self._open_note = False


def _who(meta: Meta) -> str:
    """Who begins: a new attempt, or in mid-attempt another model."""
    in_mid_attempt = meta.id is not None and meta.id.seq > 0
    return f"attempt {meta.attempt}" + (f", {meta.model}" if in_mid_attempt else "")


def _tokens(usage: Usage | None) -> list[str]:
    if usage is None or usage.source == "unknown" or usage.total_tokens is None:
        return ["usage unknown"]
    estimated = " (estimated)" if usage.source == "estimated" else ""
    parts = f"{usage.prompt_tokens} prompt + {usage.completion_tokens} completion"
    return [f"{usage.total_tokens} tokens ({parts}){estimated}"]


def tokens_per_second(completion_tokens: int | None, timings: dict[str, float]) -> float | None:
    """Of the final attempt, from its first token on."""
    first, total = timings.get("first_token"), timings.get("total")
    if not completion_tokens or first is None or total is None or total <= first:
        return None
    return completion_tokens * 1000 / (total - first)
