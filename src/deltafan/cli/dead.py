"""`deltafan dead`: jobs that failed for good."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.table import Table

from deltafan.broker.dead import DeadLetter, drop_dead, find_dead, list_dead, retry_dead
from deltafan.cli.base import Json, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.following import open_queue
from deltafan.cli.jobs import age
from deltafan.cli.output import fail, note, out, print_json, printable, run, wrong
from deltafan.errors import DeltafanError
from deltafan.queues import AsyncQueue
from deltafan.settings import QUEUE_NAME, JobLimits, RedisSettings

app = new_app(subcommands="Look at jobs that failed for good, run them again, or forget them.")
COMMANDS = {"dead": app}


def _queue_name(text: str) -> str:
    if not re.fullmatch(QUEUE_NAME, text):
        raise typer.BadParameter("is no name of a queue: lower case letters, digits, - and _")
    return text


Queue = Annotated[str, typer.Option(help="The queue they are of.", callback=_queue_name)]
Job = Annotated[str | None, typer.Argument(metavar="[JOB]", help="The dead job's id.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of the queue.")]

_BATCH = 1000
"""Letters handled at a time."""


@app.command("list", epilog="Example: `deltafan dead list --queue chat --json | jq .errors`.")
@takes_settings(RedisSettings)
def list_(
    given: Given,
    *,
    queue: Queue = "default",
    limit: Annotated[int, typer.Option(help="The most to list.", min=1, max=10_000)] = 100,
    json: Json = False,
) -> None:
    """List dead jobs, the newest first."""
    run(_list(given, queue, limit, json))


@app.command(epilog="Examples: `deltafan dead retry JOB`, `deltafan dead retry --all --queue chat`.")
@takes_settings(RedisSettings, JobLimits)
def retry(given: Given, job: Job = None, *, every: All = False, queue: Queue = "default", json: Json = False) -> None:
    """Run dead jobs again, each as a new job, whose id is printed."""
    run(_retry(given, job, every, queue, json))


@app.command(epilog="Examples: `deltafan dead drop JOB`, `deltafan dead drop --all`.")
@takes_settings(RedisSettings)
def drop(given: Given, job: Job = None, *, every: All = False, queue: Queue = "default", json: Json = False) -> None:
    """Forget dead jobs. Their records stay until they expire."""
    run(_drop(given, job, every, queue, json))


async def _list(given: Given, queue: str, limit: int, json: bool) -> None:
    async with open_queue(given.load()) as opened:
        letters = await list_dead(opened.connections.commands, opened.settings.partitions, queue, limit)
    if json:
        for letter in letters:
            print_json(letter.to_dict())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("ID", "DIED", "ATTEMPTS", "REASON"):
        table.add_column(column, no_wrap=column != "REASON")
    for letter in letters:
        last = letter.errors[-1].get("message", "") if letter.errors else ""
        reason = f"{letter.reason}: {last}" if last else letter.reason
        table.add_row(letter.job_id, f"{age(letter.died)} ago", str(len(letter.errors)), printable(reason))
    out.print(table if letters else "no dead jobs", markup=False, soft_wrap=False)


async def _retry(given: Given, job: str | None, every: bool, queue: str, json: bool) -> None:
    failed = 0
    async with open_queue(given.load()) as opened:
        for letter in await _letters(opened, job, every, queue):
            try:
                enqueued = await retry_dead(opened.connections.commands, letter, opened.limits)
            except DeltafanError as error:
                if not every:
                    raise
                note(f"{letter.job_id}: {error}")
                failed += 1
                continue
            if json:
                print_json({"id": enqueued.id, "state": enqueued.state, "retry_of": letter.job_id})
            else:
                out.print(enqueued.id, markup=False)
    if failed:
        raise fail(f"{failed} of them cannot be run again")


async def _drop(given: Given, job: str | None, every: bool, queue: str, json: bool) -> None:
    dropped = 0
    async with open_queue(given.load()) as opened:
        while letters := await _letters(opened, job, every, queue):
            for letter in letters:
                await drop_dead(opened.connections.commands, letter)
            dropped += len(letters)
            if not every:
                break
    if json:
        print_json({"dropped": dropped})
    else:
        out.print(f"dropped {dropped}", markup=False)


async def _letters(opened: AsyncQueue, job: str | None, every: bool, queue: str) -> list[DeadLetter]:
    """The letters that a command is about, at most a batch of them.

    :raises ValidationError: neither a job nor --all was given, or both.
    :raises JobNotFound: no such dead letter.
    """
    if every == (job is not None):
        raise wrong("JOB", "give either a job's id or --all")
    redis, partitions = opened.connections.commands, opened.settings.partitions
    if job is None:
        return await list_dead(redis, partitions, queue, _BATCH)
    return [await find_dead(redis, partitions, queue, job)]
