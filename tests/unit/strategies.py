"""Hypothesis strategies: any event, any text, any stream of a job."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from deltafan.events import (
    FINISH_REASONS,
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

AWKWARD = (
    "",
    "\x00",
    "\u2028",
    "\u2029",
    "\u0085",
    "\ufeff",
    "\r\n",
    '"',
    "\\",
    '","id":"9-9"',
    "🏳️‍🌈",
    "\ud800",
    "\udfff",
)
JOB = "0-job"


def clean(value: Any) -> Any:
    """What of a value the wire carries: each half of a surrogate pair becomes U+FFFD."""
    match value:
        case str():
            return re.sub("[\ud800-\udfff]", "\ufffd", value)
        case dict():
            return {clean(k): clean(v) for k, v in value.items()}
        case list():
            return [clean(v) for v in value]
        case _:
            return value


texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=12),
    st.text(st.characters(), max_size=8),  # with lone surrogates
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, json_values, max_size=3)
counts = st.none() | st.integers(0, 2**31)
choices = st.sampled_from([0, 0, 0, 1, 2])

text_deltas = st.builds(TextDelta, text=texts, choice=choices)
reasoning_deltas = st.builds(ReasoningDelta, text=texts, choice=choices)
refusal_deltas = st.builds(RefusalDelta, text=texts, choice=choices)
tool_call_deltas = st.builds(
    ToolCallDelta,
    index=st.integers(0, 2),
    arguments=texts,
    call_id=st.none() | st.sampled_from(["call_a", "call_b"]),
    name=st.none() | texts,
    choice=choices,
)
deltas = st.one_of(text_deltas, reasoning_deltas, refusal_deltas, tool_call_deltas)
metas = st.builds(
    Meta,
    attempt=st.integers(1, 9),
    model=texts,
    provider=texts,
    created=st.integers(0, 2**45),
    metadata=objects,
    restart=st.booleans(),
    continued=st.booleans(),
)
tool_results = st.one_of(
    st.builds(ToolResult, call_id=texts, name=texts, result=json_values),
    st.builds(ToolResult, call_id=texts, name=texts, error=texts),
)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    total_tokens=counts,
    cached_tokens=counts,
    reasoning_tokens=counts,
    cost_usd=st.none() | st.floats(0, 1e6),
    source=st.sampled_from(["reported", "estimated", "unknown"]),
)
errors = st.builds(
    Error,
    code=texts,
    message=texts,
    status=st.none() | st.integers(100, 599),
    retryable=st.booleans(),
    will_retry=st.booleans(),
)
dones = st.builds(
    Done,
    finish_reason=st.sampled_from(FINISH_REASONS),
    text_length=st.integers(0, 2**40),
    timings=st.dictionaries(st.sampled_from(["queued", "first_token", "total"]), st.floats(0, 1e9)),
)
others = st.one_of(metas, tool_results, usages, errors, dones)
any_event = st.one_of(deltas, others)


def numbered(events: list[Event]) -> list[Event]:
    """As a log has them: a `meta` begins an attempt and is its seq 0."""
    attempt, seq, out = 1, -1, []
    for event in events:
        if isinstance(event, Meta) and seq >= 0:
            attempt, seq = attempt + 1, -1
        seq += 1
        if isinstance(event, Meta):
            event = replace(event, attempt=attempt, restart=attempt > 1 and not event.continued)
        out.append(replace(event, id=EventId(attempt, seq), job=JOB))
    return out


# Mostly deltas, as streams are.
streams = st.lists(st.one_of(deltas, deltas, text_deltas, others), max_size=30)
