"""One oracle for every follower's transcript: it names each promise that was broken, and says nothing when all held.

Ids strictly rise; each attempt is gapless from its `meta`; exactly one `done`, last; the final attempt's output equals
what the provider sent; all followers saw the same. A merged event stands for the run from its `first` to its `id`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deltafan.broker.status import JobStatus
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.events import Delta, Done, Event, EventId, Meta
from deltafan.transcript import Transcript


def order_problems(events: Iterable[Event], after: EventId | None = None) -> list[str]:
    """Whether ids rise without a gap, from `after` on, and each attempt begins with its `meta`."""
    problems: list[str] = []
    last = after
    said = False
    for event in events:
        if event.id is None:
            problems.append(f"a {event.type} has no id")
            continue
        first = event.first or event.id
        if first > event.id:
            problems.append(f"{event.id} says that it begins at {first}")
        if last is None or first.attempt > last.attempt:
            if first.seq != 0 or not isinstance(event, Meta):
                problems.append(f"attempt {first.attempt} begins at {first} with a {event.type}, not with its meta")
            elif said and event.restart == event.continued:
                problems.append(f"{first} does not say what becomes of the output before it")
        elif first != EventId(last.attempt, last.seq + 1):
            problems.append(f"{first} follows {last}")
        elif isinstance(event, Meta) and event.restart == event.continued:
            problems.append(f"{first} does not say whether it begins anew or goes on")
        last = event.id
        said = isinstance(event, Delta) or (said and not (isinstance(event, Meta) and event.restart))
    return problems


def ending_problems(events: Sequence[Event]) -> list[str]:
    """Whether it ends with its only `done`, whose `text_length` is that of the text."""
    if not events:
        return ["no events at all"]
    problems = []
    if not isinstance(events[-1], Done):
        problems.append(f"ends with a {events[-1].type} ({events[-1].id}), not with done")
    if (number := sum(isinstance(event, Done) for event in events)) > 1:
        problems.append(f"has {number} done events")
    return problems


def transcript_of(events: Iterable[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript


def problems_of(events: Sequence[Event], *, text: str | None = None, after: EventId | None = None) -> list[str]:
    """Everything that is wrong with a transcript that has ended.

    :param text: what the final attempt must amount to.
    :param after: the cursor that the follower began with.
    """
    problems = order_problems(events, after) + ending_problems(events)
    transcript = transcript_of(events)
    if after is None and transcript.done is not None and transcript.done.text_length != len(transcript.text):
        problems.append(f"done counts {transcript.done.text_length} characters, the text has {len(transcript.text)}")
    if text is not None and transcript.text != text:
        problems.append(difference(transcript.text, text))
    return problems


def difference(got: str, expected: str, what: str = "text") -> str:
    """Where two texts part, in words."""
    place = next(
        (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    return (
        f"the {what} differs from what the provider sent at character {place}: {got[place : place + 40]!r} "
        f"({len(got)} characters) instead of {expected[place : place + 40]!r} ({len(expected)} characters)"
    )


def outputs(events: Iterable[Event]) -> dict[int, tuple[object, ...]]:
    """What each attempt said, whatever was merged on the way: the same for every whole transcript of a job."""
    by_attempt: dict[int, Transcript] = {}
    for event in events:
        if event.id is None:
            continue
        attempt = by_attempt.setdefault(event.id.attempt, Transcript())
        attempt.add(event)
    return {
        number: (
            t.text,
            t.reasoning,
            t.refusal,
            tuple((c.index, c.id, c.name, c.arguments) for c in t.tool_calls),
            None if t.usage is None else (t.usage.prompt_tokens, t.usage.completion_tokens, t.usage.source),
            None if t.error is None else t.error.code,
            None if t.done is None else t.done.finish_reason,
        )
        for number, t in by_attempt.items()
    }


def agreement_problems(transcripts: Mapping[str, Sequence[Event]], *, final_only: bool = False) -> list[str]:
    """Whether followers who saw a job whole saw the same. The first one is what the others are compared with.

    :param final_only: of the last attempt; Redis lost writes, and what followers saw of earlier ones is nowhere else.
    """
    known = [(name, outputs(events)) for name, events in transcripts.items()]
    if final_only:
        known = [(name, {number: said[number] for number in sorted(said)[-1:]}) for name, said in known]
    return [
        f"{name} and {known[0][0]} differ in attempt {attempt}: {said.get(attempt)!r:.200} and {other!r:.200}"
        for name, said in known[1:]
        for attempt, other in known[0][1].items()
        if said.get(attempt) != other
    ] + [
        f"{name} saw attempts {sorted(said)}, {known[0][0]} saw {sorted(known[0][1])}"
        for name, said in known[1:]
        if said.keys() != known[0][1].keys()
    ]


def failure_problems(status: JobStatus) -> list[str]:
    """Whether a job's record counts the attempts whose failures it lists."""
    listed = sum(error.get("attempt") != 0 for error in status.attempt_errors)  # 0: a raw entry that is no job
    if status.failures == listed:
        return []
    return [f"{status.failures} attempts failed, and the record has the errors of {listed}"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two requests for one job that ran at the same time."""

    earlier: RequestRecord
    later: RequestRecord
    seconds: float


def asker(record: RequestRecord) -> str:
    """What tells jobs apart: the `key` that a job gave the provider, whatever its messages have become meanwhile."""
    return record.key.rpartition(":")[2]


def overlaps(records: Iterable[RequestRecord], slack: float = 0.25) -> list[Overlap]:
    """Requests for one job that the provider answered at the same time.

    :param slack: seconds that the provider may take to see that a connection has been closed.
    """
    found: list[Overlap] = []
    by_key: dict[str, list[RequestRecord]] = {}
    for record in sorted(records, key=lambda r: r.started):
        earlier = by_key.setdefault(asker(record), [])
        for other in earlier:
            together = (other.ended or float("inf")) - record.started
            if together > slack:
                found.append(Overlap(other, record, together))
        earlier.append(record)
    return found
