"""A completion streamed to a sink without a queue: the same sinks and the same pace as in the worker."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from deltafan.errors import CompletionError
from deltafan.events import Done, Error, Event, EventId, Meta
from deltafan.sinks.base import JobInfo, Sink, SinkUnavailable
from deltafan.sinks.fanout import SinkRunner
from deltafan.telemetry.hooks import Hook, silent
from deltafan.transcript import Transcript

BUDGET = 10.0
"""Seconds that a sink which is behind may take when the completion has ended."""
_PAGE = 1000


class _Borrowed:
    """A sink that its owner closes."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def emit(self, batch: Sequence[Event]) -> None:
        await self._sink.emit(batch)

    async def aclose(self) -> None:
        return


class _Log:
    """What the stream has said, in memory: as long as the output, which the caller gets anyway."""

    def __init__(self, job_id: str) -> None:
        self.transcript = Transcript()
        self._job_id = job_id
        self._events: list[Event] = []

    def append(self, event: Event) -> Event:
        event = replace(event, id=EventId(1, len(self._events)), job=self._job_id)
        self._events.append(event)
        self.transcript.add(event)
        return event

    @property
    def last(self) -> EventId:
        return EventId(1, len(self._events) - 1)

    async def read(self, after: EventId | None) -> Sequence[Event]:
        begin = 0 if after is None else after.seq + 1
        return self._events[begin : begin + _PAGE]


async def stream_to_sink(
    events: AsyncGenerator[Event, None],
    sink: Sink,
    *,
    model: str,
    provider: str = "",
    job_id: str | None = None,
    budget: float = BUDGET,
    hook: Hook = silent,
) -> Transcript:
    """Send a completion's events to a sink: a `meta` first, `done` last, whatever happens; ids are `1-<n>`.

    The sink goes at its own pace; it never holds up the completion. It stays open: it is the caller's to close.

    :param events: of `Completions.stream`; they are closed here.
    :param job_id: the `job` of the events; a random one when left out.
    :param budget: seconds that a sink which is behind may take at the end.
    :return: what the completion amounts to.
    :raises CompletionError: it failed; the sink has been told by `error` and `done`.
    :raises SinkUnavailable: the sink did not get everything.
    """
    job_id = job_id or f"0-{secrets.token_hex(8)}"
    log = _Log(job_id)

    async def borrowed(_: JobInfo) -> Sink:
        return _Borrowed(sink)

    runner = SinkRunner("sink", borrowed, JobInfo(job_id, "default", None, {}), log.read, hook)

    def say(event: Event) -> None:
        runner.offer([log.append(event)])

    began = time.monotonic()
    failure: CompletionError | None = None
    try:
        say(Meta(attempt=1, model=model, provider=provider, created=time.time_ns() // 1_000_000))
        try:
            async with aclosing(events) as opened:
                async for event in opened:
                    say(_with_length(event, log.transcript, began))
        except CompletionError as error:
            failure = error
            say(Error(code=error.code, message=error.message, status=error.status, retryable=error.retryable))
            say(_with_length(Done("error"), log.transcript, began))
        await runner.settle(log.last, budget)
    finally:
        await runner.stop()
    if failure is not None:
        raise failure
    standing = runner.status()
    if standing["state"] != "delivered":
        raise SinkUnavailable(f"the sink did not get everything: {standing.get('error', 'it is behind')}")
    return log.transcript


def _with_length(event: Event, transcript: Transcript, began: float) -> Event:
    """`done` says how long the text is and how long it took; the completion itself knows neither."""
    if not isinstance(event, Done):
        return event
    return replace(
        event, text_length=len(transcript.text), timings={"total": round((time.monotonic() - began) * 1000, 1)}
    )
