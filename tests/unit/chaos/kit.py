"""A job that went well, and all that is known of it: each test breaks one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deltafan.broker.status import JobStatus
from deltafan.chaos.verdict import Facts, Followed
from deltafan.chaos.workload import PlannedJob
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.events import Done, Error, Event, EventId, Meta, TextDelta, Usage

TEXT = "One two three."
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
JOB = PlannedJob(0.0, 1, "paced", TEXT)


def numbered(events: Sequence[Event], attempt: int = 1, start: int = 0) -> list[Event]:
    return [replace(event, id=EventId(attempt, start + seq)) for seq, event in enumerate(events)]


def whole(attempt: int = 1, **meta: Any) -> list[Event]:
    """The events of an attempt that ended well."""
    return numbered(
        [
            Meta(attempt=attempt, created=1_000_000, **meta),
            TextDelta("One "),
            TextDelta("two "),
            TextDelta("three."),
            Usage(**USAGE, source="reported"),
            Done("stop", len(TEXT)),
        ],
        attempt,
    )


def broken_off(attempt: int = 1) -> list[Event]:
    """The events of an attempt whose worker was lost."""
    return numbered([Meta(attempt=attempt), TextDelta("One ")], attempt)


def failed() -> list[Event]:
    """The events of a job that failed."""
    return numbered([Meta(), TextDelta("One "), Error("server_error", "down"), Done("error", 4)])


def status(**changes: Any) -> JobStatus:
    values: dict[str, Any] = dict.fromkeys(JobStatus.__slots__)
    values |= {
        "id": "0-job",
        "state": "done",
        "tenant": "default",
        "queue": "default",
        "priority": "normal",
        "model": "vllm/scripted",
        "attempt": 1,
        "failures": 0,
        "max_attempts": 3,
        "created": 0,
        "started": 1,
        "finish_reason": "stop",
        "text_length": len(TEXT),
        "cancelling": False,
        "attempt_errors": [],
        "timings": {},
        "sinks": {},
        "metadata": {},
    }
    return JobStatus(**values | changes)


def request(text: str = TEXT, **changes: Any) -> RequestRecord:
    record = RequestRecord("chatcmpl-1", started=0.0, ended=1.0, key="digest:job", usage=USAGE, finish_reason="stop")
    record.add_text(text)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def facts(**changes: Any) -> Facts:
    """Of a job that went well, followed by one who saw all of it."""
    values: dict[str, Any] = {
        "log": whole(),
        "status": status(),
        "followers": {"sse 1": Followed(whole())},
        "requests": [request()],
        "doubted": False,
    }
    return Facts(**values | changes)
