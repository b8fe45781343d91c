"""Cases 2 and 3: a worker stands still past its lease, and then goes on. All it does comes to nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from deltafan.broker.scripts import ACK, APPEND, CLAIM, FINISH, RETRY
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually
from deltafan.events import EventId, Meta
from tests.e2e.faults.lives_kit import KeptBack, attempt_begun, program, sink_to


def _takeover_is_all_they_saw(*jobs: Job) -> None:
    """The second attempt has not said anything yet: what came after its `meta` would be the zombie's."""
    for job in jobs:
        for seen in job.seen.values():
            assert isinstance(seen.events[-1], Meta), seen.follower
            assert seen.last == EventId(2, 0), seen.follower


async def _gave_up(rig: Rig, zombie: Program) -> None:
    """Wait until it lives again and has let go of all its jobs: it has got its answers."""
    redis, key = rig.commands, f"deltafan:{{0}}:worker:{zombie.worker}"

    async def idle() -> bool:
        beat = await redis.get(key)
        return beat is not None and orjson.loads(beat)["running"] == 0

    await eventually(idle)


async def test_a_worker_that_was_stopped_past_its_lease_is_refused_whatever_it_does(rig: Rig, tmp_path: Path) -> None:
    """It stands still with a claim, an append, a `done`, a retry and an acknowledgement on their way."""
    own = program(sink_to(tmp_path))
    zombie, relay = await rig.worker(command=own, command_timeout=60), await rig.relay()
    assert zombie.redis is not None
    kept = KeptBack(zombie.redis.up)
    delivered = await rig.enqueue(sinks=["lines"])
    kept.keep(ACK, delivered)
    finishing = await rig.enqueue(rate=100)
    kept.keep(FINISH, finishing)
    retrying = await rig.enqueue(rate=100, scripted={"fault": "cut=8*1"})
    kept.keep(RETRY, retrying)
    for job in (delivered, finishing, retrying):
        await job.follow(relay)
        await job.begun(1)
    await kept.all_came()
    appending = await rig.enqueue(rate=20, scripted={"fault": "stall=40*1"})
    kept.keep(APPEND, appending, after=1)
    await appending.follow(relay)
    await appending.begun()
    await kept.all_came()
    kept.keep(CLAIM)
    claiming = await rig.enqueue()
    await claiming.follow(relay)
    await kept.all_came()
    running = (appending, finishing, retrying)
    zombie.freeze()

    successor = await rig.worker(command=own)
    assert successor.provider is not None
    successor.provider.down.hold()
    for job in running:
        await attempt_begun(job, 2)
    await attempt_begun(claiming, 1)
    await rig.provider.until(lambda _: all(len(job.requests) == 2 for job in running), timeout=45)
    assert not appending.requests[0].client_closed  # it stands still, and knows nothing of it
    zombie.redis.heal()
    zombie.thaw()
    await rig.provider.until(lambda _: appending.requests[0].client_closed, timeout=45)
    await _gave_up(rig, zombie)
    _takeover_is_all_they_saw(*running)
    successor.provider.heal()
    await rig.check(overlaps=True)
    for job in running:
        status = await job.handle.status()
        assert (status.state, status.attempt, len(job.requests)) == ("done", 2, 2)
        assert [error["code"] for error in status.attempt_errors] == ["worker_lost"]
    assert (len(claiming.requests), len(delivered.requests)) == (1, 1)
    assert (await delivered.handle.status()).sinks["lines"]["state"] == "delivered"


@pytest.mark.topologies("cluster", "sentinel")
async def test_a_worker_that_was_stopped_past_its_lease_in_mid_stream_is_refused(rig: Rig) -> None:
    """As above, for a Redis that no proxy stands before."""
    zombie, relay = await rig.worker(), await rig.relay()
    jobs = [await rig.enqueue(TEXT * 6, rate=50) for _ in range(6)]
    for job in jobs:
        await job.follow(relay)
    await asyncio.gather(*(job.begun() for job in jobs))
    zombie.freeze()
    successor = await rig.worker()
    assert successor.provider is not None
    successor.provider.down.hold()
    for job in jobs:
        await attempt_begun(job, 2)
    zombie.thaw()
    await rig.provider.until(lambda _: all(job.requests[0].ended is not None for job in jobs), timeout=45)
    await _gave_up(rig, zombie)
    _takeover_is_all_they_saw(*jobs)
    successor.provider.heal()
    await rig.check(overlaps=True)
    for job in jobs:
        status = await job.handle.status()
        assert (status.state, status.attempt, len(job.requests)) == ("done", 2, 2)


BLOCKING = """
async def hang(path: str) -> str:
    "Blocks the event loop until the file exists; the first time only."
    if not os.path.exists(path + ".hung"):
        open(path + ".hung", "w").close()
        while not os.path.exists(path):
            time.sleep(0.02)
    return "moved on"

TOOLS = [tool(hang)]
"""


async def test_a_worker_whose_event_loop_was_blocked_past_its_lease_is_refused(rig: Rig, tmp_path: Path) -> None:
    go = tmp_path / "go"
    own = program(BLOCKING)
    zombie, relay = await rig.worker(command=own), await rig.relay()
    streaming = await rig.enqueue(scripted={"fault": "stall=8*1"})
    await streaming.follow(relay)
    await streaming.begun()
    calls = orjson.dumps([{"name": "hang", "arguments": {"path": str(go)}}]).decode()
    calling = await rig.enqueue(tools=["hang"], scripted={"tool_calls": calls})
    calling.text *= 2  # before the call, and after it
    await calling.follow(relay)

    async def hangs() -> bool:
        return (tmp_path / "go.hung").exists()

    await eventually(hangs)
    successor = await rig.worker(command=own)
    assert successor.provider is not None
    successor.provider.down.hold()
    for job in (streaming, calling):
        await attempt_begun(job, 2)
    go.touch()
    await rig.provider.until(lambda _: streaming.requests[0].client_closed, timeout=45)
    await _gave_up(rig, zombie)
    _takeover_is_all_they_saw(streaming, calling)
    successor.provider.heal()
    await rig.check(overlaps=True)
    for job in (streaming, calling):
        status = await job.handle.status()
        assert (status.state, status.attempt) == ("done", 2)
        assert [error["code"] for error in status.attempt_errors] == ["worker_lost"]
