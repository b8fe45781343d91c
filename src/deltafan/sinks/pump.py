"""A completion streamed to a sink without a queue: the same sinks and the same pace as in the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from deltafan.events import Event, EventId
from deltafan.sinks.base import JobInfo, Sink, SinkUnavailable
from deltafan.sinks.fanout import SinkRunner
from deltafan.sinks.telling import Telling
from deltafan.telemetry.hooks import Hook, silent
from deltafan.transcript import Transcript

BUDGET = 10.0
"""Seconds that a sink which is behind may take when the completion has ended."""
CANCEL_BUDGET = 1.0
"""The same, when the caller was cancelled: for its last word, `done`."""
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

    def __init__(self) -> None:
        self._events: list[Event] = []

    def append(self, event: Event) -> Event:
        self._events.append(event)
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
    :raises SinkUnavailable: the sink did not get everything; its `transcript` holds the output.
    :raises CancelledError: as ever; the sink has been told by a `done`, `cancelled`.
    """
    telling = Telling(model=model, provider=provider, job_id=job_id)
    log = _Log()

    async def borrowed(_: JobInfo) -> Sink:
        return _Borrowed(sink)

    runner = SinkRunner("sink", borrowed, JobInfo(telling.job_id, "default", None, {}), log.read, hook)
    try:
        async with aclosing(telling.tell(events)) as told:
            async for event in told:
                runner.offer([log.append(event)])
        await runner.settle(log.last, budget)
    except asyncio.CancelledError:
        if telling.transcript.done is None:
            runner.offer([log.append(telling.cut_short())])
        await runner.settle(log.last, min(budget, CANCEL_BUDGET))
        raise
    except Exception:
        await runner.settle(log.last, budget)
        raise
    finally:
        await runner.stop()
    if telling.failure is not None:
        raise telling.failure
    standing = runner.status()
    if standing["state"] != "delivered":
        problem = f"the sink did not get everything: {standing.get('error', 'it is behind')}"
        raise SinkUnavailable(problem, transcript=telling.transcript)
    return telling.transcript
