"""Case 16, in processes: a cancel outlives whoever asked for it and whoever was to heed it, and it is quick."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import aiohttp
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import CANCEL
from deltafan.chaos.followers import by_client
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually
from deltafan.child import Child
from deltafan.errors import BrokerUnavailable
from tests.bench.cancel import STREAMS, bouncing, cancel_all, percentile


def cancels(program: Program) -> Callable[[bytes], bool]:
    """Knows the cancel on its way to Redis; whoever sent it stands still from then on."""

    def watch(data: bytes) -> bool:
        found = CANCEL.single.sha.encode() in data
        if found:
            program.freeze()
        return found

    return watch


async def streaming_in(rig: Rig, *relays: Program) -> Job:
    job = await rig.enqueue(TEXT * 50, rate=20)
    await job.follow(*relays)
    await job.begun(4)
    return job


async def cancelled_for_good(rig: Rig, job: Job) -> None:
    await rig.check(whole=False)
    for seen in job.seen.values():
        assert seen.events[-1].finish_reason == "cancelled", seen  # type: ignore[union-attr]
        assert seen.events[-1].id is not None
        assert seen.events[-1].id.attempt == 1
    assert len(job.requests) == 1
    assert job.requests[0].client_closed


async def test_a_cancel_holds_when_the_relay_that_took_it_is_killed_before_it_can_say_so(rig: Rig) -> None:
    assert rig.redis is not None
    await rig.redis.script_load(CANCEL.single.lua)
    await rig.worker()
    doomed, relay = await rig.relay(), await rig.relay()
    job = await streaming_in(rig, relay)
    assert doomed.redis is not None
    doomed.redis.cut_after_request(cancels(doomed))
    asking = asyncio.create_task(rig.http.post(f"{doomed.url}/v1/jobs/{job.id}/cancel"))
    await doomed.redis.was_cut.wait()
    doomed.kill()
    with pytest.raises(aiohttp.ClientError):
        await asking
    await cancelled_for_good(rig, job)


CANCELLER = """
import asyncio, json, sys
from deltafan import AsyncQueue

async def main():
    async with AsyncQueue(sys.argv[1]) as queue:
        print(json.dumps({"ready": True}), flush=True)
        await queue.job(sys.argv[2]).cancel()

asyncio.run(main())
"""


async def test_a_cancel_holds_when_the_process_that_asked_for_it_is_killed_at_once(rig: Rig) -> None:
    assert rig.redis is not None
    await rig.redis.script_load(CANCEL.single.lua)
    relay = await rig.relay()
    await rig.worker()
    job = await streaming_in(rig, relay)
    # The relay's proxy serves the process, too: the relay itself never cancels.
    assert relay.redis is not None
    command = [sys.executable, "-c", CANCELLER, relay.redis.url(rig.backend.url), job.id]
    async with Child(["canceller"], {}, program=command) as child:
        program = Program("canceller", child, relay.log, None, None, {})
        relay.redis.cut_after_request(cancels(program))
        await child.ready()
        await relay.redis.was_cut.wait()
        program.kill()
        assert await program.ended() != 0
    await cancelled_for_good(rig, job)


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_cancelled_job_whose_worker_dies_before_it_heeds_is_ended_by_another_and_not_run_again(
    rig: Rig,
) -> None:
    first, relay = await rig.worker(), await rig.relay()
    job = await streaming_in(rig, relay)
    first.freeze()
    assert (await job.handle.cancel()).state == "cancelling"
    first.kill()
    await rig.worker()
    await cancelled_for_good(rig, job)


async def test_a_cancelled_job_whose_worker_drains_is_not_handed_over(rig: Rig) -> None:
    """The cancel is applied while the worker stands still; when it wakes, it is told to stop before all else."""
    relay = await rig.relay()
    for _ in range(2):
        await rig.worker(lease=60.0, drain=0.1)
    job = await streaming_in(rig, relay)
    worker = (await job.handle.status()).worker
    (owner,) = [program for program in rig.programs if program.said.get("worker") == worker]
    assert owner.redis is not None
    owner.redis.down.hold()  # neither message nor answer comes through
    assert (await job.handle.cancel()).state == "cancelling"
    owner.terminate()
    owner.terminate()
    await eventually(lambda: _says(owner, "worker.draining"))
    owner.redis.down.flow()
    assert await owner.ended() == 0
    await cancelled_for_good(rig, job)


async def test_a_cancel_is_found_though_every_connection_of_its_worker_is_half_open(rig: Rig) -> None:
    relay = await rig.relay()
    first = await rig.worker(lease=30.0, command_timeout=0.5)
    job = await streaming_in(rig, relay)
    assert first.redis is not None
    first.redis.silence()
    assert (await job.handle.cancel()).state == "cancelling"
    await cancelled_for_good(rig, job)


async def _says(program: Program, what: str) -> bool:
    return what in program.logged()


async def test_a_producer_that_cannot_reach_redis_is_told_that_the_cancel_may_not_hold(rig: Rig) -> None:
    relay = await rig.relay()
    assert relay.redis is not None
    job = await rig.enqueue(delay=3600)
    relay.redis.go_away()
    async with AsyncQueue(relay.redis.url(rig.backend.url)) as queue:
        with pytest.raises(BrokerUnavailable):
            await queue.job(job.id).cancel()
    async with rig.http.post(f"{relay.url}/v1/jobs/{job.id}/cancel") as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers
    assert (await job.handle.status()).state == "delayed"


async def test_a_cancel_closes_the_connection_to_the_provider_within_100_ms(
    rig: Rig, record_property: Callable[[str, object], None]
) -> None:
    """Among 200 streams. A busy machine is slow, not wrong: its own time for a message that closes a connection is
    measured in the same run, and allowed for. `./run bench cancel` gives the figure of a machine that is at rest."""
    await rig.worker(concurrency=STREAMS, lease=30.0)
    jobs = [await rig.enqueue(TEXT * 40, rate=2) for _ in range(STREAMS)]
    await rig.provider.until(lambda found: sum(r.chunks > 1 for r in found) == STREAMS, timeout=60.0)
    assert rig.redis is not None
    async with bouncing(rig.redis) as bounce:
        least = [await bounce() for _ in range(STREAMS // 2)]
        took = await cancel_all(rig.provider, [(f":{job.key}", job.handle) for job in jobs])
        least += [await bounce() for _ in range(STREAMS // 2)]
    figures = {
        f"{what}_{name}_ms": round(percentile(samples, share) * 1000, 1)
        for what, samples in (("cancel", took), ("machine", least))
        for name, share in (("median", 0.5), ("p99", 0.99))
    }
    for name, value in figures.items():
        record_property(name, value)
    print(figures)
    assert figures["cancel_median_ms"] < 100 + 10 * figures["machine_median_ms"], figures
    assert figures["cancel_p99_ms"] < 1000 + 10 * figures["machine_p99_ms"], figures
    for job in jobs[:20]:
        job.start("client", by_client(rig.queue, job.id))
    await rig.check(*jobs[:20], whole=False)
    assert {r.outcome for r in rig.provider.requests} == {"client_closed"}
