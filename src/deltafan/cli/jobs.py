"""`deltafan jobs`, `show` and `cancel`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from deltafan.broker.listing import MAX_LIMIT
from deltafan.cli.base import JobId, Json, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.follow import tokens_per_second
from deltafan.cli.following import open_queue
from deltafan.cli.output import fields_as_flags, note, out, print_json, printable, run
from deltafan.job import JobState
from deltafan.settings import ClientSettings, RedisSettings
from deltafan.wire import dumps

jobs_app, show_app, cancel_app = new_app(), new_app(), new_app()
COMMANDS = {"jobs": jobs_app, "show": show_app, "cancel": cancel_app}

_TIMES = ("created", "started", "claimed", "ended")


@jobs_app.command(epilog="Examples: `deltafan jobs --state running`, `deltafan jobs --limit 500 --json | jq .id`.")
@takes_settings(ClientSettings, RedisSettings)
def jobs(
    given: Given,
    *,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.", show_choices=True)] = None,
    limit: Annotated[int, typer.Option(help="The most jobs to list.", min=1, max=MAX_LIMIT)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier page.")] = None,
    json: Json = False,
) -> None:
    """List jobs, newest first. With --json, the last line holds the cursor of the next page if there is one."""
    run(_jobs(given, state, limit, cursor, json))


async def _jobs(given: Given, state: str | None, limit: int, cursor: str | None, json: bool) -> None:
    async with open_queue(given.load()) as queue:
        with fields_as_flags():
            page = await queue.jobs(state=state, limit=limit, cursor=cursor)
    if json:
        for job in page.jobs:
            print_json(job.to_dict())
        if page.cursor is not None:
            print_json({"cursor": page.cursor})
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("ID", "STATE", "AGE", "ATTEMPT", "MODEL", "TOKENS/S"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("AGE", "ATTEMPT", "TOKENS/S") else "left")
    for job in page.jobs:
        speed = tokens_per_second((job.usage or {}).get("completion_tokens"), job.timings)
        table.add_row(
            job.id,
            "cancelling" if job.cancelling else job.state,
            age(job.created),
            str(job.attempt),
            printable(job.model),
            f"{speed:.1f}" if speed is not None else "-",
        )
    out.print(table if page.jobs else "no jobs", markup=False, soft_wrap=False, crop=False)
    if page.cursor is not None:
        note(f"more: --cursor {page.cursor}")


@show_app.command(epilog="Example: `deltafan show JOB --json | jq .usage`.")
@takes_settings(ClientSettings, RedisSettings)
def show(given: Given, job: JobId, *, json: Json = False) -> None:
    """Show a job's record: state, attempts, timings, usage, errors."""
    run(_show(given, job, json))


async def _show(given: Given, job: str, json: bool) -> None:
    async with open_queue(given.load()) as queue:
        status = await queue.job(job).status()
    if json:
        print_json(status.to_dict())
        return
    rows = {name: _shown(name, value) for name, value in status.to_dict().items() if value not in (None, {}, [])}
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"{name.replace('_', ' '):<{width}}  {printable(value)}", markup=False)


def _shown(name: str, value: Any) -> str:
    if name in _TIMES:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value / 1000))} ({age(value)} ago)"
    return value if isinstance(value, str) else dumps(value).decode()


@cancel_app.command(epilog="Example: `deltafan cancel JOB`.")
@takes_settings(ClientSettings, RedisSettings)
def cancel(given: Given, job: JobId, *, json: Json = False) -> None:
    """Cancel a job that waits or runs. One that has ended stays as it is, which is no error."""
    run(_cancel(given, job, json))


async def _cancel(given: Given, job: str, json: bool) -> None:
    async with open_queue(given.load()) as queue:
        outcome = await queue.job(job).cancel()
    if json:
        print_json({"id": job, **asdict(outcome)})
    elif outcome.cancelled:
        out.print("cancelled" if outcome.state == "cancelled" else "cancelling: its worker ends it", markup=False)
    else:
        out.print(f"it had ended before: {outcome.state}", markup=False)


def age(since_ms: int) -> str:
    """Time since a Unix time in milliseconds, in the largest fitting unit."""
    seconds = max(0.0, time.time() - since_ms / 1000)
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
