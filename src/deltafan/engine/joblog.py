"""One attempt's way into the log: events get ids, are merged while an append is in flight, and are kept for a while.

No I/O of its own: the flusher sends what `next_call` gives and hands back the answer. What is kept refills a log that
has lost its tail (Redis restarted from an older state).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from deltafan.broker.claims import Claim
from deltafan.broker.scripts import APPEND, Call
from deltafan.coalesce import coalesce
from deltafan.events import Event, EventId, Meta, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from deltafan.wire import encode

RENEW = 3600.0
"""Seconds between renewals of the log's idle expiry."""
MAX_BATCH = 256
"""Events of one append."""
EVENT_CHARS = 32
"""What an event counts in the buffer besides its output."""


def output_size(event: Event) -> int:
    """Characters of output in an event."""
    match event:
        case TextDelta() | ReasoningDelta() | RefusalDelta():
            return len(event.text)
        case ToolCallDelta():
            return len(event.arguments) + len(event.name or "")
        case _:
            return 0


def text_after(chars: int, event: Event) -> int:
    """Characters of the text of choice 0 after an event, of so many before it."""
    match event:
        case TextDelta(choice=0):
            return chars + len(event.text)
        case Meta(continued=False):  # in mid-attempt: another model begins anew
            return 0
        case _:
            return chars


class JobLog:
    """The open log of a running attempt.

    :param wake: tells the flusher that there is something to say.
    :param stop: called once when the attempt may not write any more: `cancelled`, `fenced` or `gone`.
    """

    def __init__(
        self,
        claim: Claim,
        *,
        wake: Callable[[JobLog], None],
        stop: Callable[[str], None],
        buffer_bytes: int,
        memory_bytes: int,
        idle_ms: int,
    ) -> None:
        self.claim = claim
        self.chars = claim.chars
        """Characters of the text of choice 0, that which a continued attempt began with included."""
        self.output_chars = 0
        """Characters of output of this attempt, of every kind and also void ones: what an estimate of usage goes by."""
        self.seen_at: float | None = None
        """When a subscriber was last known to listen, by the loop's clock."""
        self.closed = False
        self.broken = False
        """What has been said can never be written."""
        self._wake = wake
        self._stop = stop
        self._buffer_bytes = buffer_bytes
        self._memory_bytes = memory_bytes
        self._idle_ms = idle_ms
        self._pending: list[Event] = []
        self._pending_chars = 0
        self._flight: list[tuple[EventId, Event, bytes]] = []
        self._flight_args: tuple[int, str] = (0, "0")
        self._sent_chars = claim.chars  # as `chars`, after the last event that was sent
        self._memory: deque[bytes] = deque([claim.meta])
        self._memory_first = 0  # the seq of the oldest event in memory
        self._memory_size = len(claim.meta)
        self._next_seq = 1
        self._visible = False
        self._sealed = False
        self._renewed: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()
        self.on_appended: Callable[[Sequence[Event]], None] | None = None

    def emit(self, event: Event) -> None:
        """Take an event for the log. Never blocks; see `room`."""
        size = output_size(event)
        self.chars = text_after(self.chars, event)
        self._visible = True
        self.output_chars += size
        self._pending.append(event)
        self._pending_chars += size + EVENT_CHARS
        if self._pending_chars >= self._buffer_bytes:
            self._room.clear()
        self._idle.clear()
        if not self._flight:
            self._wake(self)

    @property
    def full(self) -> bool:
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until the buffer has room: the provider's stream is not read meanwhile."""
        await self._room.wait()

    async def seal(self) -> list[Event]:
        """Send nothing more but what is in flight, wait for its answer, and give what is left, merged.

        The script that ends the attempt writes the rest, so that the last words and the end are one round trip.
        """
        self._sealed = True
        if not self._flight:
            self._idle.set()
        await self._idle.wait()
        rest = list(coalesce(self._pending))
        self._pending.clear()
        return rest

    def close(self) -> None:
        """Write nothing more."""
        self.closed = True
        self._pending.clear()
        self._flight.clear()
        self._idle.set()
        self._room.set()

    @property
    def visible(self) -> bool:
        """Whether this attempt has put out anything."""
        return self._visible

    @property
    def next_seq(self) -> int:
        return self._next_seq

    def next_call(self, now: float) -> Call | None:
        """The append to send now; the same one again while it has not been answered."""
        if self.closed:
            return None
        if not self._flight:
            if not self._pending or self._sealed:
                self._idle.set()
                return None
            merged = list(coalesce(self._pending))
            self._pending = merged[MAX_BATCH:]
            for event in merged[:MAX_BATCH]:
                event_id = EventId(self.claim.attempt, self._next_seq)
                self._flight.append((event_id, event, encode(self.claim.job_id, event_id, event)))
                self._next_seq += 1
                self._sent_chars = text_after(self._sent_chars, event)
            renew = self._renewed is None or now - self._renewed > RENEW
            if self._renewed is None:
                self._renewed = now  # the claim has just set it
                renew = False
            elif renew:
                self._renewed = now
            self._flight_args = (self._sent_chars, str(self._idle_ms) if renew else "")
        return self._append(self._flight[0][0].seq, [data for _, _, data in self._flight])

    def _append(self, first: int, events: Sequence[bytes]) -> Call:
        keys, job_id = self.claim.keys, self.claim.job_id
        chars, renew = self._flight_args
        return Call(
            APPEND,
            keys.of_job(job_id),
            (
                self.claim.attempt,
                self.claim.worker,
                first,
                chars,
                int(self._visible),
                renew,
                self.claim.spec.channel or "",
                *events,
            ),
        )

    def answered(self, answer: Any, now: float) -> Call | None:
        """Take the append's answer. A call it gives back is to be sent at once: the backfill of a lost tail."""
        status, last, cancel, seen = answer
        if self.closed:
            return None
        if cancel:
            self._stop("cancelled")
        match status:
            case b"appended" | b"duplicate":
                if seen > 0:
                    self.seen_at = now
                self._landed()
                return None
            case b"gap":
                return self.backfill(last)
            case _:
                self.close()
                self._stop("gone" if status == b"gone" else "fenced")
                return None

    def refused(self, error: BaseException) -> None:
        """Redis refuses the append for good (an ACL, a key of another type), or an event cannot be encoded."""
        self.broken = True
        self.close()
        self._stop(f"refused: {error}")

    def backfill(self, last: int) -> Call | None:
        """The append of everything after `last` that is still in memory, what is in flight included.

        When the lost part is older than the memory, the attempt cannot be mended: it ends, and another begins.
        """
        if last + 1 < self._memory_first:
            self.close()
            self._stop("lost_tail")
            return None
        kept = list(self._memory)[last + 1 - self._memory_first :]
        return self._append(last + 1, [*kept, *(data for _, _, data in self._flight)])

    def _landed(self) -> None:
        for _, _, data in self._flight:
            self.remember(data)
        landed, self._flight = self._flight, []
        self._pending_chars = sum(output_size(event) + EVENT_CHARS for event in self._pending)
        if self._pending_chars < self._buffer_bytes:
            self._room.set()
        if self.on_appended is not None:
            self.on_appended([replace(event, id=event_id, job=self.claim.job_id) for event_id, event, _ in landed])
        if self._pending and not self._sealed:
            self._wake(self)
        else:
            self._idle.set()

    def remember(self, data: bytes) -> None:
        self._memory.append(data)
        self._memory_size += len(data)
        while self._memory_size > self._memory_bytes and len(self._memory) > 1:
            self._memory_size -= len(self._memory.popleft())
            self._memory_first += 1
