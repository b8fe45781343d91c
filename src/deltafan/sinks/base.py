"""The seam of everything that events of a job are sent to, besides the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deltafan.events import Event
from deltafan.transcript import Transcript


class Sink(Protocol):
    """One job's way to one destination.

    `emit` gets events in the order of their ids, never two calls at once, deltas possibly merged (an event then carries
    the last id of its run). An error means that the batch may not have arrived: the same events come again, unless it
    is `Undeliverable`. A sink may be slow; its own next batch grows meanwhile, and nothing else waits for it. After a
    worker's crash a successor may send events again that had arrived: receivers drop ids that they have seen.

    `aclose` is called once, after the last `emit`, also after failures.
    """

    async def emit(self, batch: Sequence[Event]) -> None: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What a sink may know of the job it serves."""

    id: str
    tenant: str
    channel: str | None
    metadata: dict[str, Any]
    pusher_channels: tuple[str, ...] = ()
    subject: str | None = None


class SinkUnavailable(Exception):
    """A sink's destination cannot be reached now. The same events come again.

    :param retry_after: seconds before which there is no use in trying.
    :param transcript: what a completion had said that was streamed to the sink: it has been paid.
    """

    def __init__(self, message: str, retry_after: float = 0.0, transcript: Transcript | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.transcript = transcript


class Undeliverable(Exception):
    """The destination refused events for good. They are left out; those after them are delivered all the same.

    :param final: it would refuse every other event, too: the sink is given up.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


SinkFactory = Callable[[JobInfo], Awaitable[Sink]]
"""Makes a job's sink, when the job begins."""
