"""A sink that keeps what it gets: for tests, and for programs that want a job's events in the worker itself."""

from __future__ import annotations

from collections.abc import Sequence

from deltafan.events import Event


class MemorySink:
    """`events` grows with every batch; it is as large as the job's output."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    async def emit(self, batch: Sequence[Event]) -> None:
        self.events.extend(batch)

    async def aclose(self) -> None:
        self.closed = True
