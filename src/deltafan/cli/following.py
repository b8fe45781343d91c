"""Following a job from the command line."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import typer

from deltafan.broker.queue import AsyncJob
from deltafan.cli.follow import FollowPrinter
from deltafan.cli.output import FAILED, note
from deltafan.errors import DeltafanError
from deltafan.events import EventId
from deltafan.queues import AsyncQueue
from deltafan.wiring import Configuration


def open_queue(configuration: Configuration) -> AsyncQueue:
    """The queue that the settings name, as its tenant sees it."""
    return AsyncQueue(
        configuration.redis,
        tenant=configuration.client.tenant,
        limits=configuration.limits,
        retention=configuration.retention,
    )


async def follow_job(job: AsyncJob, after: EventId | None = None, *, json: bool) -> None:
    """Show a job's events until its end.

    :raises typer.Exit: with 1, the job did not end as done.
    """
    printer = FollowPrinter(json=json)
    try:
        async with aclosing(job.events(after)) as events:
            async for event in events:
                printer.add(event)
    except asyncio.CancelledError:
        resume = f" --after {printer.last}" if printer.last else ""
        note(f"\nThe job goes on. Follow it again with: deltafan tail {job.id}{resume}")
        raise
    except DeltafanError:
        printer.end_lines()  # the message comes on a line of its own
        raise
    if not json:
        printer.summary()
    state = (await job.status()).state
    if state != "done":
        raise typer.Exit(FAILED)
