"""`deltafan chaos`: a random soak that proves the promises, or names the one that was broken."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from deltafan.chaos.report import Report
from deltafan.chaos.soak import Progress, Soak, SoakPlan
from deltafan.cli.base import Json, new_app
from deltafan.cli.output import FAILED, err, errors_shown, note, out, print_json, wrong
from deltafan.program import on_signals

app = new_app()
COMMANDS = {"chaos": app}

_LINE_EVERY = 15.0
"""Seconds between two lines of progress where there is no terminal."""


@app.command(
    epilog=(
        "Examples: `deltafan chaos`, `deltafan chaos --minutes 10 --seed 42`, `deltafan chaos --logs ./logs --json`. "
        "The same seed gives the same jobs and faults at the same times; what they meet depends on the machine. "
        "It needs the extra `embedded` and no other server, and touches nothing but processes of its own."
    )
)
def chaos(
    *,
    minutes: Annotated[float, typer.Option(help="How long faults are made.", min=0.01, max=1440)] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Of the schedule; left out: a random one, which is printed.", min=0, max=2**32)
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=2, max=64)] = 3,
    relays: Annotated[int, typer.Option(help="Relay processes.", min=1, max=64)] = 2,
    rate: Annotated[float, typer.Option(help="Jobs a second, in the mean.", min=0.1, max=100)] = 3.0,
    redis: Annotated[Literal["valkey", "cluster", "sentinel"], typer.Option(help="What to run on.")] = "valkey",
    logs: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the processes' logs here.")] = None,
    json: Json = False,
) -> None:
    """Kill, freeze and cut off workers, relays and Redis at random under a load of jobs, and check every promise.

    Runs jobs of all kinds, each with several followers, on embedded servers. At the end everything is healed, each job
    must have come to its one end, each follower must have seen all of it, once and in order, and nothing may be left
    behind. The exit code is 1 when a promise was broken.
    """
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    with errors_shown():
        sys.exit(asyncio.run(_chaos(SoakPlan(minutes, seed, workers, relays, rate, redis), logs, json)))


async def _chaos(plan: SoakPlan, logs: Path | None, json: bool) -> int:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to connections that were cut: all day
    stop = asyncio.Event()
    exit_code = on_signals(stop.set)
    with tempfile.TemporaryDirectory(prefix="deltafan-chaos-") as folder, _Shown(plan) as shown:
        report = await Soak(plan, _made(logs) if logs else Path(folder), shown).run(stop)
    if json:
        print_json(report.to_dict())
    else:
        _print(report)
    return exit_code() or (FAILED if report.violations else 0)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise wrong("--logs", f"{folder} is not a folder") from None
    except OSError as error:
        raise wrong("--logs", f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _print(report: Report) -> None:
    for line in report.lines():
        out.print(line, markup=False)


class _Shown:
    """The progress: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, plan: SoakPlan) -> None:
        self._plan = plan
        self._status = err.status("starting") if err.is_terminal else None
        self._phase = ""
        self._next_line = 0.0

    def __enter__(self) -> _Shown:
        note(f"deltafan chaos: {self._plan.minutes:g} minutes, seed {self._plan.seed}")
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        line = told(progress)
        if self._status is not None:
            self._status.update(line)
        elif progress.seconds >= self._next_line or progress.phase != self._phase:
            self._phase, self._next_line = progress.phase, progress.seconds + _LINE_EVERY
            note(line)


def told(progress: Progress) -> str:
    """How far it is: what matters first, as a narrow terminal cuts the rest off."""
    report = progress.report
    return (
        f"{len(report.violations)} violations; {progress.seconds:.0f} s, {progress.phase}: "
        f"{report.ended} jobs ended, {progress.running} run, {report.faults.total()} faults"
    )
