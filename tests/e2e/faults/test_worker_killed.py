"""Case 1: a worker is killed, at any point of a job's life. Another one ends its jobs, and every follower's transcript
is whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from deltafan.broker.scripts import ACK, CLAIM, FINISH
from deltafan.chaos.program import Program
from deltafan.chaos.rig import QUICK, TEXT, Job, Rig
from deltafan.events import Event, Meta, TextDelta, Usage
from deltafan.llm.usage import estimate
from tests.e2e.faults.lives_kit import KeptBack, attempt_begun, lease_end, program, sink_to

PROMISED = 1000 * (float(str(QUICK["lease"])) / 3 + float(str(QUICK["reap_interval"])))
"""Milliseconds from the end of a lease to the takeover. The third of a lease: it may have been renewed once more."""
SLACK = 20_000
"""Milliseconds that a busy machine may take beyond that. They say nothing about the promise."""
Moment = Callable[[Rig, Program, Program], Awaitable[Job]]
"""Has a worker run a job up to the moment when it is to be killed."""


async def _before_the_claim(rig: Rig, worker: Program, relay: Program) -> Job:
    """Its entry has been read, and the claim is on its way."""
    assert worker.redis is not None
    kept = KeptBack(worker.redis.up)
    kept.keep(CLAIM)
    job = await rig.enqueue()
    await job.follow(relay)
    await kept.all_came()
    return job


async def _before_the_first_token(rig: Rig, worker: Program, relay: Program) -> Job:
    assert worker.provider is not None
    worker.provider.down.hold()
    job = await rig.enqueue()
    await job.follow(relay)
    await job.begun(1)
    await rig.provider.until(lambda _: len(job.requests) == 1, timeout=45)
    return job


async def _in_mid_stream(rig: Rig, worker: Program, relay: Program) -> Job:
    assert worker.provider is not None
    job = await rig.enqueue(TEXT * 12, rate=50)
    await job.follow(relay)
    await job.begun()
    worker.provider.down.hold()  # for as long as it takes until the kill
    return job


async def _before_done(rig: Rig, worker: Program, relay: Program) -> Job:
    """The provider has said all, and the end is on its way."""
    assert worker.redis is not None
    kept = KeptBack(worker.redis.up)
    kept.keep(FINISH)
    job = await rig.enqueue()
    await job.follow(relay)
    await kept.all_came()
    return job


@pytest.mark.parametrize("moments", [(_before_the_claim, _in_mid_stream), (_before_the_first_token, _before_done)])
async def test_wherever_a_worker_is_killed_another_ends_its_job_within_a_lease_and_a_reap_interval(
    rig: Rig, moments: Sequence[Moment]
) -> None:
    """What the dead one had sent arrives late, and changes nothing."""
    worker, relay = await rig.worker(), await rig.relay()
    for reach in moments:
        attempts = 1 if reach is _before_the_claim else 2
        job = await reach(rig, worker, relay)
        successor = await rig.worker()
        expires = await lease_end(rig, worker.worker)
        worker.kill()
        await worker.ended()
        await attempt_begun(job, attempts)
        assert worker.redis is not None
        worker.redis.heal()
        await rig.check(job)
        began = next(e.created for e in await job.log() if isinstance(e, Meta) and e.attempt == attempts)
        assert expires <= began, reach.__name__
        assert began <= expires + PROMISED + SLACK, f"{reach.__name__}: or a machine too slow to tell"
        status = await job.handle.status()
        found = (status.attempt, status.failures, len(job.requests))
        assert found == (attempts, attempts - 1, attempts), reach.__name__
        worker = successor


async def test_killed_between_done_and_acknowledgement_the_model_is_not_asked_again(rig: Rig, tmp_path: Path) -> None:
    """A further sink had everything, and only the acknowledgement was lacking; or the sink still lacks it all."""
    own = program(sink_to(tmp_path))
    first = await rig.worker(command=own)
    assert first.redis is not None
    kept = KeptBack(first.redis.up)
    delivered, lacking = await rig.enqueue(sinks=["lines"]), await rig.enqueue(sinks=["stuck"])
    kept.keep(ACK, delivered)
    for job in (delivered, lacking):
        await job.follow()
        await job.ended()
    await kept.all_came()
    second = await rig.worker(command=own)
    first.kill()
    await first.ended()
    (tmp_path / "go").touch()
    await rig.check()
    for job in (delivered, lacking):
        status = await job.handle.status()
        assert (status.attempt, status.failures, len(job.requests)) == (1, 0, 1)
        assert [sink["state"] for sink in status.sinks.values()] == ["delivered"]
        ids = (tmp_path / job.id).read_text().split()
        assert ids[-1] == status.last_id
        assert set(ids) >= {str(event.id) for event in await job.log()}
    first.redis.heal()
    assert second.alive


@pytest.mark.topologies("valkey", "cluster")
async def test_text_goes_on_where_the_model_can_and_no_loss_is_left_out_of_the_bill(rig: Rig) -> None:
    """Two workers in a row are lost."""
    onward = await rig.enqueue(TEXT * 12, rate=50, on_takeover="continue")
    unable = await rig.enqueue(TEXT * 12, rate=50, on_takeover="continue", model="openai/scripted")
    anew = await rig.enqueue(TEXT * 12, rate=50)
    jobs = (onward, unable, anew)
    for attempt in (1, 2):
        worker = await rig.worker()
        for job in jobs:
            if attempt == 1:
                await job.follow()
            await attempt_begun(job, attempt, tokens=1)
        worker.kill()
    await rig.worker()
    await rig.check()
    for job in jobs:
        log = await job.log()
        attempts = _attempts(log)
        goes_on = job is onward
        assert [(meta.restart, meta.continued) for meta in log if isinstance(meta, Meta)] == [
            (False, False),
            *[(not goes_on, goes_on)] * 2,
        ]
        if goes_on:
            assert attempts[0] + attempts[1] + job.requests[-1].text == job.text
        usage = [event for event in log if isinstance(event, Usage)]
        bill = estimate([{"role": "user", "content": job.key}], len(attempts[0]))
        bill = bill + estimate([{"role": "user", "content": job.key}], len(attempts[1])) + usage[-1]
        status = await job.handle.status()
        assert (status.attempt, status.failures) == (3, 2)
        assert status.usage is not None
        assert (status.usage["prompt_tokens"], status.usage["completion_tokens"], status.usage["source"]) == (
            bill.prompt_tokens,
            bill.completion_tokens,
            "estimated",
        )


def _attempts(log: list[Event]) -> list[str]:
    """The text that each attempt said itself."""
    texts: list[str] = []
    for event in log:
        if isinstance(event, Meta):
            texts.append("")
        elif isinstance(event, TextDelta):
            texts[-1] += event.text
    return texts
