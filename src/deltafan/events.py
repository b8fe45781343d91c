"""The events of a stream: pure values, no I/O.

A completion yields events; the log gives each an id; a follower reads them back with that id. `type` is the wire name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

FinishReason = Literal[
    "stop", "length", "tool_calls", "max_iterations", "content_filter", "cancelled", "expired", "error"
]
FINISH_REASONS: tuple[FinishReason, ...] = (
    "stop",
    "length",
    "tool_calls",
    "max_iterations",
    "content_filter",
    "cancelled",
    "expired",
    "error",
)

UsageSource = Literal["reported", "estimated", "unknown"]
_BEST_FIRST: Final[tuple[UsageSource, ...]] = ("reported", "estimated", "unknown")
_Number = TypeVar("_Number", int, float)

MAX_SEQ: Final = 2**62
"""Greater than any `seq`: of the event after all events of an attempt."""


class EventId(NamedTuple):
    """`<attempt>-<seq>`: the run of the job, from 1, and the event's place in that run, from 0. Orders as tuples do."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.seq}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events share. `id` and `job` are set on events read from a log; a completion's own events have none.

    `first` is set on a merged replay: the id of the first event of the run that this one stands for.
    """

    type: ClassVar[str]
    id: EventId | None = None
    first: EventId | None = None
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Meta(Event):
    """The first event of every attempt (seq 0). Comes again in mid-attempt when another model takes over."""

    type: ClassVar[str] = "meta"
    attempt: int = 1
    model: str = ""
    provider: str = ""
    created: int = 0
    """When the attempt was claimed: Unix time in milliseconds by Redis's clock. In mid-attempt, by the worker's."""
    metadata: dict[str, Any] = field(default_factory=dict)
    restart: bool = False
    """All output before it is void."""
    continued: bool = False
    """What follows goes on from the text already streamed."""


@dataclass(frozen=True, slots=True)
class TextDelta(Event):
    type: ClassVar[str] = "text_delta"
    text: str = ""
    choice: int = 0
    """Which choice of several (`n` > 1) the text belongs to. Absent on the wire for choice 0."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta(Event):
    type: ClassVar[str] = "reasoning_delta"
    text: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class RefusalDelta(Event):
    type: ClassVar[str] = "refusal_delta"
    text: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta(Event):
    """A piece of a tool call. Id and name come first, argument fragments follow; `index` tells parallel calls apart."""

    type: ClassVar[str] = "tool_call_delta"
    index: int = 0
    arguments: str = ""
    call_id: str | None = None
    """The call's id, `id` in OpenAI's shape; on the wire it is `call_id`, because `id` is the event's own."""
    name: str | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolResult(Event):
    """What a tool that the worker ran gave back: a result, or an error."""

    type: ClassVar[str] = "tool_result"
    call_id: str = ""
    name: str = ""
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Usage(Event):
    """Tokens and cost. `None` is unknown, which 0 is not."""

    type: ClassVar[str] = "usage"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    source: UsageSource = "unknown"

    def __add__(self, other: Usage) -> Usage:
        """The sum. What is unknown in either is unknown in the sum, and the source is the worse of the two."""
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(
            prompt_tokens=_sum(self.prompt_tokens, other.prompt_tokens),
            completion_tokens=_sum(self.completion_tokens, other.completion_tokens),
            total_tokens=_sum(self.total_tokens, other.total_tokens),
            cached_tokens=_sum(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=_sum(self.reasoning_tokens, other.reasoning_tokens),
            cost_usd=_sum(self.cost_usd, other.cost_usd),
            source=max(self.source, other.source, key=_BEST_FIRST.index),
        )


def _sum(a: _Number | None, b: _Number | None) -> _Number | None:
    return None if a is None or b is None else a + b


@dataclass(frozen=True, slots=True)
class Error(Event):
    """Why an attempt failed. Never holds a secret or a stack trace."""

    type: ClassVar[str] = "error"
    code: str = "server_error"
    message: str = ""
    status: int | None = None
    """The provider's HTTP status, where there was one."""
    retryable: bool = False
    will_retry: bool = False


@dataclass(frozen=True, slots=True)
class Done(Event):
    """The last event of a job, or of a completion. A completion's own `done` carries only its finish reason."""

    type: ClassVar[str] = "done"
    finish_reason: FinishReason = "stop"
    text_length: int = 0
    """Characters (Unicode code points) of the final text of choice 0."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds: `queued`, `first_token`, `total` where known."""


Delta = TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
EVENT_CLASSES: dict[str, type[Event]] = {
    cls.type: cls
    for cls in (Meta, TextDelta, ReasoningDelta, RefusalDelta, ToolCallDelta, ToolResult, Usage, Error, Done)
}
