"""The oracle of `deltafan.chaos`, for tests: it asserts."""

from __future__ import annotations

from collections.abc import Iterable

from deltafan.chaos.oracle import order_problems, problems_of, transcript_of
from deltafan.events import Event, EventId
from deltafan.transcript import Transcript


def check_order(events: Iterable[Event], after: EventId | None = None) -> list[Event]:
    """Assert that ids rise without a gap, from `after` on."""
    seen = list(events)
    assert order_problems(seen, after) == []
    return seen


def check_whole(events: Iterable[Event], sent: str | None = None, after: EventId | None = None) -> Transcript:
    """Assert a transcript that has ended, and give what it amounts to.

    :param sent: the text that the provider sent in the final attempt.
    """
    seen = list(events)
    assert problems_of(seen, text=sent, after=after) == []
    return transcript_of(seen)
