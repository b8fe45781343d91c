"""Case 15: a job that kills its worker each time. It ends, and those beside it are none the worse for it."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from deltafan.broker.keys import partition
from deltafan.chaos.rig import TEXT, Rig
from deltafan.events import Done, Error, Meta
from tests.e2e.cli_kit import cli
from tests.e2e.faults.lives_kit import program

POISON = """
def swallow(antidote: str) -> str:
    "Kills its own process, unless the antidote exists."
    if not os.path.exists(antidote):
        os.kill(os.getpid(), signal.SIGKILL)
    return "swallowed"

TOOLS = [tool(swallow)]
"""


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_job_that_kills_its_workers_becomes_a_dead_letter_and_its_neighbours_live(
    rig: Rig, tmp_path: Path
) -> None:
    """One process at a time, so that all jobs are always in the one that dies."""
    antidote = tmp_path / "antidote"
    calls = orjson.dumps([{"name": "swallow", "arguments": {"antidote": str(antidote)}}]).decode()
    beside = [await rig.enqueue(TEXT * 6, rate=60) for _ in range(2)]
    poison = await rig.enqueue(tools=["swallow"], scripted={"tool_calls": calls})
    for job in (*beside, poison):
        await job.follow()
    worker = await rig.worker(command=program(POISON))
    for _ in range(3):
        assert await worker.ended() == -signal.SIGKILL
        beside.append(await rig.enqueue())
        await beside[-1].follow()
        worker = await rig.again(worker)
    await rig.check(poison, whole=False, settled=False)
    log = await poison.log()
    assert [meta.attempt for meta in log if isinstance(meta, Meta)] == [1, 2, 3]
    assert isinstance(log[-2], Error)
    assert isinstance(log[-1], Done)
    assert (log[-2].code, log[-1].finish_reason) == ("worker_lost", "error")
    dead = partition(poison.id).dead("default")
    [(_, letter)] = await rig.commands.xrange(dead)
    errors = orjson.loads(letter[b"errors"])
    assert [(error["attempt"], error["code"]) for error in errors] == [(n, "worker_lost") for n in (1, 2, 3)]
    await rig.check(*beside)

    antidote.touch()
    redis = {"REDIS_URL": rig.backend.url, "DELTAFAN_PARTITIONS": str(rig.settings.partitions)}
    again = await cli("dead", "retry", poison.id, "--json", **redis)
    assert again.code == 0, again.err
    [told] = again.json()
    result = await rig.queue.job(told["id"]).result(timeout=30)
    assert result.text == poison.text * 2  # before the call, and after it
    assert await rig.commands.xlen(dead) == 0
