"""A completion that several requests share while it runs."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final

from deltafan.errors import CompletionError
from deltafan.events import Delta, Done, Event, ToolCallDelta
from deltafan.llm.cache.entry import Entry

READ_AHEAD: Final = 64
"""Events that the fastest follower may have before it: a burst costs one change of tasks, not one an event."""
_EVENT_BYTES: Final = 64  # what an event takes beside its text, roughly


class Follower:
    """One request's place in a flight."""

    def __init__(self) -> None:
        self.seen = 0
        self.news = asyncio.Event()


class Flight:
    """Runs in a task of its own, so that no request's end is another's. When the last follower leaves, it is cancelled,
    unless the answer is complete: then it ends by itself, in a moment.

    Followers get every event from the first on, in order. The buffer holds up to `max_bytes`. Beyond that nobody new
    can join, and what the fastest follower has seen is let go: a follower that has not read it yet fails, and the
    others go on. A follower alone loses nothing: no more than `READ_AHEAD` events are read ahead of the fastest.
    """

    def __init__(self, run: Callable[[Flight], Coroutine[Any, Any, None]], max_bytes: int) -> None:
        self.hit: Entry | None = None
        """What was stored, if something was. There are no events then."""
        self.open = True
        """Who comes now gets all of it."""
        self.complete = False
        """The answer's end has come."""
        self._max_bytes = max_bytes
        self._events: list[Event] = []
        self._dropped = 0
        self._bytes = 0
        self._fastest = 0
        self._room = asyncio.Event()
        self._followers: set[Follower] = set()
        self._ended = False  # later than `task.done()`, by its callback: then the error is known
        self._error: BaseException | None = None
        self.task = asyncio.create_task(run(self))
        self.task.add_done_callback(self._end)

    async def put(self, event: Event) -> None:
        """Hand an event to all followers; waits while the fastest is far behind. For the flight's own task."""
        self._events.append(event)
        self._bytes += _size(event)
        self.complete |= isinstance(event, Done)
        if self._bytes > self._max_bytes:
            self._let_go()
        self._tell()
        while self._ahead >= READ_AHEAD and not self.complete:
            self._room.clear()
            await self._room.wait()

    def join(self) -> Follower:
        follower = Follower()
        self._followers.add(follower)
        return follower

    async def follow(self, follower: Follower) -> AsyncGenerator[Event, None]:
        """The events from the first on, to the end of the task.

        :raises CompletionError: the flight's own, a copy for each follower; or this one fell too far behind.
        """
        try:
            while True:
                while follower.seen < self._dropped + len(self._events):
                    yield self._next(follower)
                if self._ended:
                    break
                follower.news.clear()
                await follower.news.wait()
            if isinstance(self._error, CompletionError):
                raise copy.copy(self._error) from self._error  # each its own: a traceback is of one task
            if self._error is not None:
                raise self._error
        finally:
            await self._leave(follower)

    async def cancel(self) -> None:
        """Cancel it, and wait for it to end: then the provider's connection is closed."""
        self.open = False
        self.task.cancel()
        await asyncio.wait({self.task})

    def _next(self, follower: Follower) -> Event:
        at = follower.seen - self._dropped
        if at < 0:
            raise CompletionError(
                "server_error", f"read too slowly: others that share this completion are {self._max_bytes} bytes ahead"
            )
        follower.seen += 1
        if follower.seen > self._fastest:
            self._fastest = follower.seen
            if self._ahead < READ_AHEAD // 2:
                self._room.set()
        return self._events[at]

    @property
    def _ahead(self) -> int:
        return self._dropped + len(self._events) - self._fastest

    def _let_go(self) -> None:
        """Drop what the fastest has seen, to half of the bound, so that it does not happen at every event."""
        self.open = False
        count = 0
        while self._bytes > self._max_bytes // 2 and self._dropped + count < self._fastest:
            self._bytes -= _size(self._events[count])
            count += 1
        del self._events[:count]
        self._dropped += count

    async def _leave(self, follower: Follower) -> None:
        self._followers.discard(follower)
        if not self._followers and not self.complete and not self.task.done():
            await self.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        self.open, self._ended = False, True
        if task.cancelled():
            # Only `cancel` does that, when nobody follows, or when the ring is closed.
            self._error = CompletionError("cancelled", "the completion was cancelled: its client was closed")
        else:
            self._error = task.exception()
        self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            follower.news.set()


def _size(event: Event) -> int:
    if not isinstance(event, Delta):
        return _EVENT_BYTES
    return _EVENT_BYTES + len(event.arguments if isinstance(event, ToolCallDelta) else event.text)
