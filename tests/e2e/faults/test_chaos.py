"""`deltafan chaos` as a user meets it: a short soak, its report, its exit codes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.e2e.cli_kit import Ended, cli, end_of, running_cli

SEED = "7"


@pytest.mark.timeout(180)  # it is long by itself, and five processes start slowly where others are busy
async def test_a_soak_ends_without_violations_and_says_what_it_did(tmp_path: Path) -> None:
    soak = ("chaos", "--minutes", "0.2", "--seed", SEED, "--logs", str(tmp_path / "logs"))
    async with asyncio.timeout(150), running_cli(*soak) as process:
        out, err = (told.decode() for told in await process.communicate())
    ended = Ended(process.returncode or 0, out, err)
    assert "Traceback" not in ended.err
    assert ended.code == 0, ended.out + ended.err
    assert f"seed {SEED}" in ended.err
    assert "No violations" in ended.out
    for told in ("jobs", "attempts", "followers", "provider", "faults"):
        assert f"  {told} " in ended.out
    assert f"The same again: deltafan chaos --minutes 0.2 --seed {SEED}" in ended.out
    assert "s, breaking things: " in ended.err
    assert {"worker1.log", "relay4.log"} <= {file.name for file in (tmp_path / "logs").iterdir()}


@pytest.mark.timeout(120)
async def test_ctrl_c_ends_everything_and_reports_what_was_done_so_far() -> None:
    async with running_cli("chaos", "--minutes", "60", "--workers", "2", "--relays", "1", "--json") as process:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"breaking things" not in await process.stderr.readline():
                pass
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)
    assert ended.code == 130
    [report] = ended.json()
    assert report["interrupted"] is True
    assert report["violations"] == []
    assert report["again"].startswith("deltafan chaos --minutes 60 --seed ")
    assert report["again"].endswith(" --workers 2 --relays 1")


@pytest.mark.timeout(120)
async def test_ctrl_c_before_anything_was_judged_says_so_and_that_it_stops() -> None:
    async with running_cli("chaos", "--workers", "2", "--relays", "1") as process:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            assert b"seed" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)
    assert ended.code == 130
    assert "s, stopping: " in ended.err
    assert "breaking things" not in ended.err
    assert "Nothing was judged" in ended.out
    assert "No violations" not in ended.out
    assert "followers  none" in ended.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "0"], "'--minutes': must be at least 0.01"),
        (["--minutes", "ten"], "'--minutes': must be a number"),
        (["--seed", "-1"], "'--seed': must be at least 0"),
        (["--workers", "1.5"], "'--workers': must be a whole number"),
        (["--relays", "0"], "'--relays': must be at least 1"),
        (["--rate", "101"], "'--rate': must be at most 100"),
        (["--redis", "memcached"], "'--redis': 'memcached' is not one of"),
        (["--logs", "/dev/null/logs"], "--logs: /dev/null/logs cannot be made: Not a directory"),
        (["--logs", "/dev/null"], "--logs: /dev/null is not a folder"),
    ],
)
async def test_a_wrong_option_is_told_before_anything_starts(arguments: list[str], told: str) -> None:
    ended = await cli("chaos", *arguments)
    assert ended.code == 2
    assert told in ended.err
    assert ended.out == ""
