"""Every fault of the scripted provider, through the whole pipeline: the right end, the right code, no token twice."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import FAULTS, Script, Text, parse_faults, running
from deltafan.events import Error, Meta, Usage
from tests.conftest import StartWorker
from tests.oracle import check_whole

TEXT = "Ελλάδα, 日本語 and a flag 🏳️‍🌈: " * 5


@dataclass(frozen=True)
class Expected:
    state: str = "done"
    reason: str = "stop"
    code: str | None = None
    """Of the job's error."""
    source: str = "reported"
    """Of the usage of the last attempt."""
    retried: bool = False
    """Whether a second attempt was made before the end."""
    whole: bool = True
    """Whether the text of the final attempt is all of it."""


def _fails(code: str, *, retried: bool = False) -> Expected:
    return Expected("failed", "error", code, "estimated", retried, whole=False)


CASES: dict[str, Expected] = {
    "rate_limit=0": _fails("rate_limit", retried=True),
    "quota": _fails("quota"),
    "server_error": _fails("server_error", retried=True),
    "server_error=503": _fails("server_error", retried=True),
    "authentication": _fails("authentication"),
    "permission": _fails("permission"),
    "model_not_found": _fails("model_not_found"),
    "context_length": _fails("context_length"),
    "bad_request": _fails("bad_request"),
    "content_filter=3": Expected(reason="content_filter", whole=False),
    "cut=3": _fails("connection", retried=True),
    "cut=0": _fails("connection", retried=True),
    "close=3": _fails("malformed_stream", retried=True),
    "stall": _fails("timeout_first_token", retried=True),
    "stall=3": _fails("timeout_stall", retried=True),
    "malformed=3": _fails("malformed_stream", retried=True),
    "error=3": _fails("server_error", retried=True),
    "split": Expected(),
    "crlf": Expected(),
    "no_done": Expected(),
    "no_usage": Expected(source="estimated"),
    "late_usage": Expected(),
    "slow_headers=0.05": Expected(),
}


def test_every_fault_has_a_case() -> None:
    assert {case.partition("=")[0] for case in CASES} == set(FAULTS)


@pytest.mark.parametrize("fault", CASES)
async def test_a_fault_of_the_provider_ends_as_it_should(
    queue: AsyncQueue, start_worker: StartWorker, fault: str
) -> None:
    expected = CASES[fault]
    async with running(Script(source=Text(TEXT), chunk_size=3, faults=parse_faults(fault))) as failing:
        await start_worker(failing, first_token_timeout=0.3, stall_timeout=0.3)
        job = await queue.enqueue(model="m", prompt="x", max_attempts=2)
        events = [event async for event in job.events()]
    transcript = check_whole(events, TEXT if expected.whole else None)
    assert transcript.done is not None
    assert transcript.done.finish_reason == expected.reason
    status = await job.status()
    assert status.state == expected.state
    assert (status.error or {}).get("code") == expected.code
    assert [error.will_retry for error in events if isinstance(error, Error)] == (
        [] if expected.code is None else [True, False] if expected.retried else [False]
    )
    assert len([meta for meta in events if isinstance(meta, Meta)]) == 1 + expected.retried
    assert TEXT.startswith(transcript.text)
    usages = [usage for usage in events if isinstance(usage, Usage)]
    assert len(usages) == 1 + expected.retried
    assert usages[-1].source == expected.source
