"""One oracle for every follower's transcript.

Ids strictly rise; each attempt is gapless from its `meta`; exactly one `done`, last; the final attempt's text equals
what the provider sent. A merged event stands for the run from its `first` to its `id`.
"""

from __future__ import annotations

from collections.abc import Iterable

from deltafan.events import Done, Event, EventId, Meta
from deltafan.transcript import Transcript


def check_order(events: Iterable[Event], after: EventId | None = None) -> list[Event]:
    """Assert that ids rise without a gap, from `after` on."""
    seen = list(events)
    last = after
    for event in seen:
        assert event.id is not None
        first = event.first or event.id
        assert first <= event.id
        if last is None or first.attempt > last.attempt:
            assert first.seq == 0, f"attempt {first.attempt} begins at {first}, not with its meta"
            assert isinstance(event, Meta)
        else:
            assert first == EventId(last.attempt, last.seq + 1), f"{first} follows {last}"
            assert not isinstance(event, Meta) or event.restart != event.continued, f"{first} says not what it is"
        last = event.id
    return seen


def check_whole(events: Iterable[Event], sent: str | None = None, after: EventId | None = None) -> Transcript:
    """Assert a transcript that has ended, and give what it amounts to.

    :param sent: the text that the provider sent in the final attempt.
    """
    seen = check_order(events, after)
    assert seen, "no events at all"
    assert isinstance(seen[-1], Done), f"ends with {seen[-1].type}"
    assert sum(isinstance(event, Done) for event in seen) == 1
    transcript = Transcript()
    for event in seen:
        transcript.add(event)
    assert transcript.done is not None
    if after is None:
        assert transcript.done.text_length == len(transcript.text)
    if sent is not None:
        assert transcript.text == sent
    return transcript
