"""What the tests of workers' lives share: requests kept back on their way to Redis, and an operator's own workers."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from deltafan.broker.scripts import Script
from deltafan.chaos.rig import Job, Rig, eventually
from deltafan.devserver.proxy import Gate
from deltafan.events import EventId


@dataclass(slots=True)
class _Wanted:
    script: bytes
    job: bytes
    passing: int


class KeptBack:
    """Requests that a network keeps back: runs of a script, for one job or for any. They arrive when the gate flows."""

    def __init__(self, gate: Gate) -> None:
        self._wanted: list[_Wanted] = []
        self._news = asyncio.Event()
        gate.hold_back(self._keeps)

    def keep(self, script: Script, job: Job | None = None, *, after: int = 0) -> None:
        """:param after: how many pass before."""
        self._wanted.append(_Wanted(script.single.sha.encode(), job.id.encode() if job is not None else b"", after))

    def _keeps(self, data: bytes) -> bool:
        for wanted in self._wanted:
            if wanted.script in data and wanted.job in data:
                wanted.passing -= 1
                self._news.set()
                return wanted.passing < 0
        return False

    async def all_came(self, timeout: float = 45.0) -> None:
        """Wait until one of each kind is kept back."""
        async with asyncio.timeout(timeout):
            while any(wanted.passing >= 0 for wanted in self._wanted):
                self._news.clear()
                await self._news.wait()


def program(source: str) -> list[str]:
    """A worker of an operator's own: `source` may define `TOOLS`, `SINKS`, and whatever else before it starts."""
    return [sys.executable, "-c", f"{_BEFORE}\n{source}\n{_AFTER}"]


_BEFORE = """
import asyncio, json, os, signal, sys, time
from deltafan import run_worker, tool
TOOLS, SINKS = [], {}
"""
_AFTER = """
def ready(name):
    print(json.dumps({"ready": True, "worker": name}), flush=True)

sys.exit(run_worker(tools=TOOLS, sinks=SINKS, ready=ready))
"""


def sink_to(folder: Path) -> str:
    """Source of a sink `lines`, which writes the ids that it gets to a file for each job, and of `stuck`, which does so
    once the file `go` exists.
    """
    return f"""
class Lines:
    def __init__(self, job, waits):
        self.path, self.waits = {str(folder)!r} + "/" + job.id, waits

    async def emit(self, batch):
        while self.waits and not os.path.exists({str(folder / "go")!r}):
            await asyncio.sleep(0.02)
        with open(self.path, "a") as file:
            file.writelines(str(event.id) + "\\n" for event in batch)

    async def aclose(self):
        pass

async def lines(job):
    return Lines(job, False)

async def stuck(job):
    return Lines(job, True)

SINKS = {{"lines": lines, "stuck": stuck}}
"""


async def attempt_begun(job: Job, attempt: int, tokens: int = 0) -> None:
    """Wait until every follower has seen an attempt's `meta`, and so many of its events after it."""
    await job.until(lambda seen: seen.last is not None and seen.last >= EventId(attempt, tokens))


async def lease_end(rig: Rig, worker: str) -> int:
    """When the present lease of a living worker ends: a Unix time in milliseconds by Redis's clock."""
    redis, key, found = rig.commands, f"deltafan:{{0}}:worker:{worker}", -1

    async def beats() -> bool:
        nonlocal found
        found = int(await redis.pexpiretime(key))  # type: ignore[no-untyped-call]
        return found > 0

    await eventually(beats)
    return found
