"""The watchdog, with real processes: what it guards ends with its parent, and never before."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltafan.devserver import watchdog
from tests.unit.devserver.processes import ended

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    time.sleep(60)
"""
TALKATIVE = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(41))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


async def watched(code: str, *options: str) -> asyncio.subprocess.Process:
    """A Python program under a watchdog whose parent is this test."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", watchdog.__file__, *options, "--", sys.executable, "-I", "-S", "-c", code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def first_line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


def let_go(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
async def test_it_ends_with_the_code_of_what_it_runs(code: str, status: int) -> None:
    process = await watched(code)
    assert await process.wait() == status
    let_go(process)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 41), (signal.SIGTERM, 42)])
async def test_it_hands_signals_on(number: int, status: int) -> None:
    process = await watched(TALKATIVE)
    await first_line(process)
    process.send_signal(number)
    assert await process.wait() == status
    let_go(process)


async def test_it_terminates_what_it_runs_when_its_parent_lets_go() -> None:
    process = await watched(TALKATIVE)
    await first_line(process)
    let_go(process)
    assert await process.wait() == 42


async def test_it_kills_what_does_not_heed() -> None:
    process = await watched(STUBBORN)
    await first_line(process)
    let_go(process)
    async with asyncio.timeout(watchdog.GRACE_SECONDS + 10):
        assert await process.wait() == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends a child with its parent")
async def test_what_it_runs_dies_with_a_watchdog_that_is_killed() -> None:
    process = await watched(TALKATIVE)
    child = os.pidfd_open(int(await first_line(process)))
    try:
        process.kill()
        await process.wait()
        await ended(child)
    finally:
        os.close(child)
        let_go(process)


@pytest.mark.parametrize("arguments", [[], ["--"], ["true"]])
async def test_a_wrong_call_says_how(arguments: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deltafan.devserver.watchdog", *arguments, stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors[:6]) == (2, b"usage:")


async def test_a_program_that_is_not_there_is_named() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, watchdog.__file__, "--", "/no/such/program", stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (127, b"/no/such/program: No such file or directory\n")


@pytest.mark.parametrize("orderly", [True, False], ids=["in order", "by being killed"])
async def test_it_removes_a_folder_only_when_its_parent_cannot(tmp_path: Path, orderly: bool) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "file").touch()
    process = await watched(TALKATIVE, "--remove", str(folder))
    await first_line(process)
    assert process.stdin is not None
    if orderly:
        process.stdin.write(b".")
    let_go(process)
    assert await process.wait() == 42
    assert folder.exists() is orderly


async def test_a_folder_stays_when_what_it_runs_ends_first(tmp_path: Path) -> None:
    """The parent lives: it may start a server there again."""
    process = await watched("pass", "--remove", str(tmp_path))
    assert await process.wait() == 0
    let_go(process)
    assert os.listdir(tmp_path) == []  # it is there
