"""Case 17: two of whoever may do a thing do it at once, a thousand times: one of them wins, each time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from deltafan.broker import expiry, upkeep
from deltafan.broker.claims import Claim
from deltafan.broker.connections import Connections
from deltafan.broker.enqueue import Enqueued
from deltafan.broker.intake import Taken
from deltafan.broker.keys import TAKEOVER, partition
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.followers import by_client
from deltafan.chaos.rig import Rig
from deltafan.errors import ConflictError
from deltafan.settings import RedisSettings, Retention, WorkerSettings
from tests.e2e.faults.races_kit import (
    ROUNDS,
    Contestant,
    both_happened,
    check_ended,
    enqueue,
    entries,
    in_turn,
    races,
)

Two = tuple[Contestant, Contestant]


@pytest.fixture
async def two(redis_settings: RedisSettings) -> AsyncIterator[tuple[Contestant, Contestant]]:
    async with AsyncExitStack() as stack:
        made = []
        for name in ("one", "two"):
            connections = await stack.enter_async_context(Connections(redis_settings))
            made.append(Contestant(connections, name))
        for contestant in made:
            await contestant.intake.ensure_groups()
        yield made[0], made[1]


@pytest.mark.topologies("valkey", "cluster")
async def test_two_reapers_at_once_move_or_end_each_lost_job_once(queue: AsyncQueue, two: Two) -> None:
    """A third of the jobs may run again, a third may not, a third are cancelled."""
    again = await enqueue(queue, ROUNDS // 3 + 1)
    dead = await enqueue(queue, ROUNDS // 3, max_attempts=1)
    cancelled = await enqueue(queue, ROUNDS // 3)
    async with Connections(queue.settings) as connections:
        lost = Contestant(connections, "lost")  # it never sends a heartbeat
        await lost.own()
        await in_turn(lost.cancel, cancelled)

    async def reaps(reaper: Contestant) -> Counter[str]:
        counts: Counter[str] = Counter()
        for number in range(queue.settings.partitions):
            while True:
                found = await upkeep.reap(reaper.redis, number, "default", WorkerSettings(), Retention())
                counts.update(moved=found.moved, ended=len(found.ended))
                if not found.moved + len(found.ended):
                    break
        return counts

    one, other = await asyncio.gather(*(reaps(reaper) for reaper in two))
    assert one["moved"] + other["moved"] == len(again)
    assert one["ended"] + other["ended"] == len(dead) + len(cancelled)
    assert sorted(await entries(queue, TAKEOVER)) == sorted(again)
    for job_id in again:
        status = await queue.job(job_id).status()
        assert (status.state, status.failures, len(status.attempt_errors)) == ("queued", 1, 1)
    await in_turn(two[0].finish, await two[0].own())
    states = await check_ended(queue, [*again, *dead, *cancelled])
    assert states == {"done": len(again), "failed": len(dead), "cancelled": len(cancelled)}


async def test_two_schedulers_at_once_queue_each_due_job_once_though_some_are_cancelled_meanwhile(
    queue: AsyncQueue, two: Two
) -> None:
    job_ids = await enqueue(queue, delay=0.05)

    async def promotes(scheduler: Contestant) -> None:
        while await upkeep.promote(scheduler.redis, 0, "default") is not None:
            await asyncio.sleep(0)

    third = job_ids[::3]
    _, _, cancels = await asyncio.gather(*(promotes(s) for s in two), in_turn(two[0].cancel, third))
    assert {outcome.state for outcome in cancels} == {"cancelled"}
    assert sorted(await entries(queue)) == sorted(set(job_ids) - set(third))
    await in_turn(two[1].finish, await two[1].own())
    assert await check_ended(queue, job_ids) == {"done": ROUNDS - len(third), "cancelled": len(third)}


async def test_two_workers_that_expire_jobs_at_once_end_each_once(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue, expires_in=0.01)

    async def expires(worker: Contestant) -> int:
        ended = 0
        while await worker.redis.zcard(partition("0-x").deadlines):
            ended += await expiry.expire(worker.redis, 0, Retention())
        return ended

    assert sum(await asyncio.gather(*(expires(worker) for worker in two))) == ROUNDS
    assert await check_ended(queue, job_ids) == {"expired": ROUNDS}


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_two_enqueues_with_one_idempotency_key_make_one_job(redis_settings: RedisSettings) -> None:
    async with AsyncQueue(redis_settings) as one, AsyncQueue(redis_settings) as other:

        def by(queue: AsyncQueue, prompt: str) -> Callable[[int], Awaitable[Enqueued]]:
            return lambda number: queue.submit(model="m", prompt=prompt, idempotency_key=f"{prompt}-{number}")

        found = await races(range(ROUNDS), by(one, "same"), by(other, "same"))
        assert all(a.id == b.id and a.created != b.created for a, b in found)
        both_happened(a.created for a, _ in found)
        assert sorted(await entries(one)) == sorted(a.id for a, _ in found)


async def test_two_different_jobs_with_one_idempotency_key_are_one_job_and_one_conflict(
    redis_settings: RedisSettings,
) -> None:
    async with AsyncQueue(redis_settings) as one, AsyncQueue(redis_settings) as other:

        def by(queue: AsyncQueue, prompt: str) -> Callable[[int], Awaitable[Enqueued]]:
            return lambda number: queue.submit(model="m", prompt=prompt, idempotency_key=f"key-{number}")

        found = await races(range(ROUNDS), by(one, "this"), by(other, "that"))
        made = [answer for pair in found for answer in pair if isinstance(answer, Enqueued)]
        assert [isinstance(a, ConflictError) + isinstance(b, ConflictError) for a, b in found] == [1] * ROUNDS
        assert sorted(await entries(one)) == sorted(answer.id for answer in made)


async def test_two_workers_that_take_at_once_share_the_entries_and_none_goes_to_both(
    queue: AsyncQueue, two: Two
) -> None:
    job_ids = await enqueue(queue)
    taken: list[Taken] = []

    async def takes(worker: Contestant) -> None:
        while found := await worker.intake.take(7):
            taken.extend(found)

    await asyncio.gather(*(takes(worker) for worker in (*two, *two)))
    assert sorted(item.job_id for item in taken) == sorted(job_ids)


async def test_two_claims_of_one_entry_begin_one_attempt(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue)
    one, other = two
    found = await races(await one.take_all(), one.claim, other.claim)
    owners = [claim for pair in found for claim in pair if isinstance(claim, Claim)]
    assert [isinstance(a, Claim) + isinstance(b, Claim) for a, b in found] == [1] * ROUNDS
    both_happened(isinstance(a, Claim) for a, _ in found)
    by_name = {worker.name: worker for worker in two}
    assert set(await in_turn(lambda claim: by_name[claim.worker].finish(claim), owners)) == {"finished"}
    assert await check_ended(queue, job_ids) == {"done": ROUNDS}


async def test_two_cancels_at_once_end_a_waiting_job_once(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue)
    found = await races(job_ids, two[0].cancel, two[1].cancel)
    assert all(a.cancelled and b.cancelled for a, b in found)
    assert await check_ended(queue, job_ids) == {"cancelled": ROUNDS}


async def test_a_cancel_and_a_claim_at_once_leave_a_job_that_runs_and_is_cancelled_or_one_that_never_runs(
    queue: AsyncQueue, two: Two
) -> None:
    job_ids = await enqueue(queue)
    worker, other = two
    taken = await worker.take_all()
    found = await races(taken, worker.claim, lambda item: other.cancel(item.job_id))
    for claim, outcome in found:
        assert outcome.cancelled
        assert (claim is None) == (outcome.state == "cancelled")
        if claim is not None:
            assert await worker.finish(claim) == "cancelled"
            assert await worker.finish(claim, "cancelled", "cancelled") == "finished"
    both_happened(claim is None for claim, _ in found)
    assert await check_ended(queue, job_ids) == {"cancelled": ROUNDS}


async def test_a_cancel_and_an_end_at_once_agree_on_which_of_them_it_was(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue)
    worker, other = two
    claims = await worker.own()
    found = await races(claims, worker.finish, lambda claim: other.cancel(claim.job_id))
    for claim, (ended, outcome) in zip(claims, found, strict=True):
        assert (ended, outcome.state) in {("finished", "done"), ("cancelled", "cancelling")}
        assert outcome.cancelled == (ended == "cancelled")
        if ended == "cancelled":
            assert await worker.finish(claim, "cancelled", "cancelled") == "finished"
    cancelled = both_happened(outcome.cancelled for _, outcome in found)
    assert await check_ended(queue, job_ids) == {"cancelled": cancelled, "done": ROUNDS - cancelled}


async def test_a_cancel_and_a_retry_at_once_leave_no_job_that_runs_again(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue)
    worker, other = two
    claims = await worker.own()
    found = await races(claims, worker.retry, lambda claim: other.cancel(claim.job_id))
    for claim, (retried, outcome) in zip(claims, found, strict=True):
        assert outcome.cancelled
        assert (retried, outcome.state) in {("delayed", "cancelled"), ("cancelled", "cancelling")}
        if retried == "cancelled":
            assert await worker.finish(claim, "cancelled", "cancelled") == "finished"
    both_happened(retried == "cancelled" for retried, _ in found)
    assert await check_ended(queue, job_ids) == {"cancelled": ROUNDS}


async def test_a_cancel_and_a_hand_over_at_once_leave_no_job_that_runs_again(queue: AsyncQueue, two: Two) -> None:
    job_ids = await enqueue(queue)
    worker, other = two
    claims = await worker.own()
    found = await races(claims, worker.release, lambda claim: other.cancel(claim.job_id))
    for claim, (released, outcome) in zip(claims, found, strict=True):
        assert outcome.cancelled
        assert (released, outcome.state) in {("released", "cancelled"), ("cancelled", "cancelling")}
        if released == "cancelled":
            assert await worker.finish(claim, "cancelled", "cancelled") == "finished"
    both_happened(released == "cancelled" for released, _ in found)
    assert await check_ended(queue, job_ids) == {"cancelled": ROUNDS}


async def test_an_end_and_a_reaping_at_once_leave_a_job_that_has_ended_or_one_that_runs_again_never_both(
    queue: AsyncQueue, two: Two
) -> None:
    """The worker has been silent for a lease, and ends its jobs just when another takes them from it."""
    job_ids = await enqueue(queue)
    silent, reaper = two
    claims = await silent.own()

    async def reaps() -> int:
        moved = 0
        while any([await reaper.redis.xlen(stream) for stream in (partition("0-x").queue("default", "normal"),)]):
            moved += (await upkeep.reap(reaper.redis, 0, "default", WorkerSettings(), Retention())).moved
        return moved

    ended, moved = await asyncio.gather(in_turn(silent.finish, claims), reaps())
    answers = Counter(ended)
    assert answers["finished"] + moved == ROUNDS
    assert answers["finished"] + answers["fenced"] == ROUNDS
    await reaper.beat()
    assert await in_turn(reaper.finish, await reaper.own()) == ["finished"] * moved
    assert await check_ended(queue, job_ids) == {"done": ROUNDS}


async def test_two_worker_processes_that_promote_at_once_run_each_job_once(rig: Rig) -> None:
    for _ in range(2):
        await rig.worker(concurrency=100)
    jobs = await asyncio.gather(*(rig.enqueue("once", delay=1.0) for _ in range(300)))
    for job in jobs:
        job.start("client", by_client(rig.queue, job.id))
    await rig.check()
    assert all(len(job.requests) == 1 for job in jobs)
