"""A completion as the text of a `text/event-stream` answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from deltafan import sse
from deltafan.events import Event, EventId
from deltafan.llm.checks import invalid, is_number
from deltafan.sinks.telling import Telling
from deltafan.wire import encode

HEARTBEAT = 15.0
"""Seconds of silence after which a comment keeps proxies from closing the connection."""
MIN_HEARTBEAT = 0.1
"""Our own bound: more comments than that are load, and keep nothing open."""
_READ_AHEAD = 16
"""Events that may wait for a slow reader; more wait in the provider's connection."""


async def sse_frames(
    events: AsyncGenerator[Event, None], telling: Telling, heartbeat: float = HEARTBEAT
) -> AsyncGenerator[str, None]:
    """The frames of a completion, as the relay sends those of a job: `meta` first, `done` last, whatever happens.

    :param events: are closed here.
    """
    told: asyncio.Queue[Event | Exception | None] = asyncio.Queue(_READ_AHEAD)

    async def read() -> None:
        # A task of its own, and the same one for all events: time limits belong to the task that waits.
        try:
            async with aclosing(telling.tell(events)) as opened:
                async for event in opened:
                    await told.put(event)
        except Exception as error:
            await told.put(error)
        else:
            await told.put(None)

    reading = asyncio.create_task(read(), name="deltafan-sse")
    try:
        while True:
            try:
                async with asyncio.timeout(heartbeat):
                    event = await told.get()
            except TimeoutError:
                yield sse.comment().decode()
                continue
            if event is None:
                return
            if isinstance(event, Exception):
                raise event  # a fault of this program is for its log; readers have had their `done`
            yield _frame(telling.job_id, event)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def check_heartbeat(value: Any) -> None:
    """:raises ValidationError: it is not a number of seconds of at least `MIN_HEARTBEAT`."""
    if not is_number(value) or value < MIN_HEARTBEAT:
        raise invalid("heartbeat", f"must be a number of seconds, {MIN_HEARTBEAT:g} or more")


def _frame(job_id: str, event: Event) -> str:
    event_id = event.id or EventId(1, 0)
    return sse.encode(encode(job_id, event_id, event), event=event.type, id=str(event_id)).decode()
