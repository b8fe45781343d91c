"""The command line as a user meets it: real processes, with an environment of their own."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

PATIENCE = 45.0
MARK = "DELTAFAN_TEST_MARK"


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str

    def json(self) -> list[Any]:
        return [orjson.loads(line) for line in self.out.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """Nothing of the test runner's own settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "COLUMNS": "200", **more}


@asynccontextmanager
async def running_cli(*arguments: str, stdin: int = DEVNULL, **env: str) -> AsyncIterator[Process]:
    """A command that runs on; it is killed at the end if it still does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deltafan", *arguments), stdin=stdin, stdout=PIPE, stderr=PIPE, env=environment(**env)
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def cli(*arguments: str, given: bytes = b"", **env: str) -> Ended:
    """A command, to its end."""
    async with asyncio.timeout(PATIENCE), running_cli(*arguments, stdin=PIPE, **env) as process:
        out, err = await process.communicate(given)
        assert process.returncode is not None
        ended = Ended(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in ended.err
        return ended


async def line(process: Process) -> Any:
    """The next line of JSON that a command prints."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return orjson.loads(await process.stdout.readline())


async def end_of(process: Process) -> Ended:
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def new_mark() -> str:
    """For the environment of a process tree, by which its members are found whatever became of their parents."""
    return secrets.token_hex(12)


def marked(mark: str) -> list[int]:
    """The processes that live with this mark (Linux)."""
    needle = f"{MARK}={mark}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if needle in (folder / "environ").read_bytes().split(b"\0") and not _is_zombie(folder):
                    found.append(int(folder.name))
    return found


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def all_ended(mark: str, timeout: float = 15.0) -> None:
    """Wait until no process with this mark lives."""
    try:
        async with asyncio.timeout(timeout):
            while marked(mark):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"still running: {[_name(pid) for pid in marked(mark)]}") from None


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def types(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]
