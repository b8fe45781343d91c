"""What becomes of the jobs of lost workers, and of cancelled ones; and who wins where two come at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from deltafan.broker import upkeep
from deltafan.broker.claims import Claim
from deltafan.broker.keys import GROUP, TAKEOVER
from deltafan.broker.scripts import CANCEL, FORGET, PROMOTE
from deltafan.errors import JobNotFound
from deltafan.events import Done
from deltafan.settings import RedisSettings, WorkerSettings
from tests.contract.lua_kit import RETENTION, K, Lab, Work, open_lab
from tests.oracle import check_whole


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


async def _begun(lab: Lab, text: str = "hi", **fields: Any) -> Work:
    worker = await lab.worker()
    await lab.enqueue(**fields)
    work = await worker.begin()
    if text:
        await work.say(text)
    return work


# reap


async def test_nothing_is_taken_from_a_worker_that_lives(lab: Lab) -> None:
    work = await _begun(lab)
    assert await lab.reap("w1", work.claim.taken) == "alive"
    assert (await lab.record())["owner"] == "w1"


async def test_a_lost_workers_running_job_goes_before_all_others_and_is_charged(lab: Lab) -> None:
    work = await _begun(lab)
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "moved"
    record = await lab.record()
    expected = {"state": "queued", "owner": "", "failures": "1", "lost": "w1", "usage_lost": "1", "attempt": "1"}
    assert record.items() >= expected.items()
    [(entry, fields)] = await lab.redis.xrange(K.queue("default", TAKEOVER))
    assert fields == {b"id": b"0-a", b"model": b"m"}
    assert (record["entry"], record["stream"]) == (entry.decode(), K.queue("default", TAKEOVER))
    [error] = orjson.loads(record["errors"])
    assert (error["attempt"], error["code"]) == (1, "worker_lost")
    assert "heartbeats" in error["message"]
    assert "w1" not in error["message"]  # users read it; the name is the operator's
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert (await work.append("late"))[0] == "fenced"
    assert await lab.reap("w1", work.claim.taken) == "missing"


async def test_a_job_that_was_read_and_not_begun_is_charged_nothing(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    await worker.die()
    assert await lab.reap("w1", taken) == "moved"
    record = await lab.record()
    assert (record["state"], record["failures"], record["errors"]) == ("queued", "0", "[]")
    claim = (await (await lab.worker("w2")).begin()).claim
    assert (claim.attempt, claim.usage_lost) == (1, None)


async def test_a_job_that_may_be_what_kills_its_workers_says_so_until_it_runs_again(lab: Lab) -> None:
    """Also where the worker that was to try it died without having begun."""
    work = await _begun(lab, max_attempts=2)
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "moved"
    second = await lab.worker("w2")
    [taken] = await second.take()
    assert taken.last_chance
    await second.die()
    assert await lab.reap("w2", taken) == "moved"
    third = await (await lab.worker("w3")).begin()
    assert third.claim.taken.last_chance
    assert await third.release() == "released"
    [taken] = await (await lab.worker("w4")).take()
    assert not taken.last_chance


async def test_an_entry_added_by_hand_keeps_its_spec_on_the_way(lab: Lab) -> None:
    worker = await lab.worker()
    raw = b'{"model":"m","prompt":"by hand"}'
    entry = (await lab.redis.xadd(K.queue("default", "low"), {"job": raw})).decode()
    [taken] = await worker.take()
    await worker.die()
    assert await lab.reap("w1", taken) == "moved"
    [(_, fields)] = await lab.redis.xrange(K.queue("default", TAKEOVER))
    assert fields == {b"id": f"0-default-low-{entry}".encode(), b"job": raw}
    work = await (await lab.worker("w2")).begin()
    assert work.id == f"0-default-low-{entry}"
    assert work.claim.spec.prompt == "by hand"


async def test_an_ended_job_whose_sinks_wait_is_moved_and_not_begun_again(lab: Lab) -> None:
    work = await _begun(lab)
    await work.finish(acknowledge=False)
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "moved"
    other = await lab.worker("w2")
    [taken] = await other.take()
    ended = await other.claim(taken)
    assert not isinstance(ended, Claim)
    assert ended is not None
    record = await lab.record()
    assert (record["state"], record["failures"]) == ("done", "0")
    await other.claims.acknowledge(taken, "0-a", {})
    assert (await lab.waiting(TAKEOVER), (await lab.record())["entry"]) == ([], "")


async def test_the_last_failure_ends_the_job(lab: Lab) -> None:
    work = await _begun(lab, max_attempts=1)
    await work.worker.die()
    async with lab.heard(K.live("0-a")) as published:
        assert await lab.reap("w1", work.claim.taken) == "failed"
    assert len(published) == 3
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 usage", "1-3 error", "1-4 done"]
    transcript = check_whole(await lab.log(), "hi")
    assert transcript.error is not None
    assert (transcript.error.code, transcript.error.will_retry) == ("worker_lost", False)
    assert transcript.usage is not None
    assert transcript.usage.source == "unknown"
    record = await lab.record()
    expected = {"state": "failed", "failures": "1", "entry": "", "owner": "", "finish_reason": "error"}
    assert record.items() >= expected.items()
    assert (await lab.waiting(), await lab.waiting(TAKEOVER), await lab.pending()) == ([], [], {})
    [letter] = await lab.dead()
    assert (letter["id"], letter["reason"]) == ("0-a", "worker_lost")
    assert 90 < await lab.ttl(K.job("0-a")) <= 100


async def test_the_bound_is_the_workers_where_the_job_names_none(lab: Lab) -> None:
    worker = await lab.worker(max_attempts=2)
    await lab.enqueue()
    work = await worker.begin()
    await worker.die()
    assert await lab.reap("w1", work.claim.taken, max_attempts=9) == "moved"
    other = await lab.worker("w2", max_attempts=9)
    again = await other.begin()
    await other.die()
    assert await lab.reap("w2", again.claim.taken, max_attempts=9) == "failed"  # as the first claim has set it


async def test_a_cancelled_job_of_a_lost_worker_ends_as_cancelled(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.cancel()
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "cancelled"
    transcript = check_whole(await lab.log(), "hi")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"
    assert (await lab.record())["state"] == "cancelled"
    assert await lab.dead() == []


async def test_a_known_usage_becomes_unknown_when_a_worker_is_lost_for_good(lab: Lab) -> None:
    work = await _begun(lab, max_attempts=1)
    await lab.redis.hset(K.job("0-a"), "usage", '{"prompt_tokens":5,"source":"reported"}')
    await work.worker.die()
    await lab.reap("w1", work.claim.taken)
    assert orjson.loads((await lab.record())["usage"]) == {"prompt_tokens": 5, "source": "unknown"}


async def test_a_job_that_lost_its_log_and_its_worker_ends_with_a_whole_log(lab: Lab) -> None:
    work = await _begun(lab, max_attempts=1)
    await lab.redis.delete(K.log("0-a"))
    assert (await work.append("b"))[0] == "gap"
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "failed"
    # Whoever follows has 1-1: only a later attempt's ids reach him.
    assert await lab.types() == ["2-0 meta", "2-1 usage", "2-2 error", "2-3 done"]


async def test_the_reaper_finds_the_lost_and_forgets_their_names(lab: Lab) -> None:
    lost, alive = await lab.worker("lost"), await lab.worker("alive")
    for n in range(5):
        await lab.enqueue(f"0-{n}", max_attempts=1 if n == 0 else None)
    for _ in range(3):
        await lost.begin()
    await lost.take()
    await alive.begin()
    await lost.die()
    reaped = await upkeep.reap(lab.redis, 0, "default", WorkerSettings(), RETENTION)
    assert (reaped.moved, reaped.ended, reaped.lost) == (3, (("0-0", "failed"),), ("lost",))
    assert set(await lab.waiting(TAKEOVER)) == {"0-1", "0-2", "0-3"}
    names = [c["name"] for c in await lab.redis.xinfo_consumers(K.queue("default", "normal"), GROUP)]
    assert names == [b"alive"]
    assert await upkeep.reap(lab.redis, 0, "default", WorkerSettings(), RETENTION) == upkeep.Reaped()


# forget


async def _forget(lab: Lab, worker: str = "w1") -> int:
    keys = [K.worker(worker), K.queue("default", "normal")]
    return int(await lab.script(FORGET, keys, GROUP, worker))


async def test_only_a_dead_workers_name_that_holds_nothing_is_forgotten(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    assert await _forget(lab) == 0
    await worker.die()
    assert await _forget(lab) == 0
    assert await lab.pending() == {taken.entry: "w1"}
    await lab.reap("w1", taken)
    assert await _forget(lab) == 1
    assert await lab.redis.xinfo_consumers(K.queue("default", "normal"), GROUP) == []


# cancel


@pytest.mark.parametrize("delay", [0, 60])
async def test_a_waiting_job_ends_at_once(lab: Lab, delay: float) -> None:
    await lab.enqueue(delay=delay, expires_in=100)
    async with lab.heard(K.live("0-a")) as published:
        outcome = await lab.cancel()
    assert (outcome.state, outcome.cancelled) == ("cancelled", True)
    assert len(published) == 2
    assert await lab.types() == ["1-0 meta", "1-1 done"]
    last = (await lab.log())[-1]
    assert isinstance(last, Done)
    assert last.finish_reason == "cancelled"
    assert last.timings.keys() == {"total"}
    record = await lab.record()
    assert record.items() >= {"state": "cancelled", "entry": "", "cancel": "1", "finish_reason": "cancelled"}.items()
    assert await lab.waiting() == []
    assert not await lab.redis.exists(K.delayed("default"), K.deadlines)
    assert 90 < await lab.ttl(K.log("0-a")) <= 100
    again = await lab.cancel()
    assert (again.state, again.cancelled) == ("cancelled", True)
    assert len(await lab.log()) == 2


async def test_a_running_jobs_worker_is_told(lab: Lab) -> None:
    await _begun(lab)
    async with lab.heard(f"{K.control}w1") as told:
        outcome = await lab.cancel()
    assert (outcome.state, outcome.cancelled) == ("cancelling", True)
    assert told == [b"cancel 0-a"]
    record = await lab.record()
    assert (record["state"], record["cancel"]) == ("running", "1")
    assert (await lab.cancel()).state == "cancelling"


async def test_a_job_that_waits_for_another_attempt_ends_after_what_was_said(lab: Lab) -> None:
    work = await _begun(lab)
    await work.retry()
    assert (await lab.cancel()).state == "cancelled"
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 usage", "1-3 error", "1-4 done"]
    assert not await lab.redis.exists(K.delayed("default"))


async def test_a_lost_job_that_is_cancelled_before_its_takeover_settles_its_usage(lab: Lab) -> None:
    work = await _begun(lab)
    await work.worker.die()
    await lab.reap("w1", work.claim.taken)
    assert (await lab.cancel()).state == "cancelled"
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 usage", "1-3 done"]
    assert orjson.loads((await lab.record())["usage"])["source"] == "unknown"
    assert await lab.waiting(TAKEOVER) == []


async def test_an_ended_job_stays_as_it_is(lab: Lab) -> None:
    work = await _begun(lab)
    await work.finish()
    before = await lab.record()
    outcome = await lab.cancel()
    assert (outcome.state, outcome.cancelled) == ("done", False)
    assert await lab.record() == before


async def test_another_tenants_job_is_unknown(lab: Lab) -> None:
    await lab.enqueue(tenant="acme")
    with pytest.raises(JobNotFound):
        await lab.cancel(tenant="default")
    assert (await lab.record())["state"] == "queued"
    assert (await lab.cancel(tenant="acme")).cancelled


async def test_cancel_looks_again_for_a_job_that_has_moved(lab: Lab) -> None:
    await lab.enqueue()
    keys = [K.job("0-a"), K.log("0-a"), K.live("0-a"), K.queue("default", "high")]
    keys += [K.delayed("default"), K.deadlines, K.expiries]
    assert await lab.script(CANCEL, keys, "0-a", "", GROUP, 100, K.control) == [b"moved"]
    assert (await lab.record())["state"] == "queued"


# two at once


async def test_of_many_reapers_one_takes_the_job(lab: Lab) -> None:
    work = await _begun(lab)
    await work.worker.die()
    answers = await asyncio.gather(*(lab.reap("w1", work.claim.taken) for _ in range(20)))
    assert sorted(answers) == ["missing"] * 19 + ["moved"]
    assert await lab.waiting(TAKEOVER) == ["0-a"]
    assert (await lab.record())["failures"] == "1"


async def test_of_many_promoters_one_queues_the_job(lab: Lab) -> None:
    await lab.enqueue(delay=60)
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1})
    keys = [K.job("0-a"), K.delayed("default"), K.queue("default", "normal")]
    answers = await asyncio.gather(*(lab.script(PROMOTE, keys, "0-a", "m") for _ in range(20)))
    assert sorted(answers) == [0] * 19 + [1]
    assert await lab.waiting() == ["0-a"]


async def test_of_many_enqueues_of_one_key_one_makes_the_job(lab: Lab) -> None:
    answers = await asyncio.gather(*(lab.enqueue_raw(job_id=f"0-{n}", idempotency_key="k") for n in range(20)))
    made = [job_id for status, job_id in answers if status == "queued"]
    assert len(made) == 1
    assert {job_id for _, job_id in answers} == set(made)
    assert await lab.waiting() == made


async def test_of_cancel_and_finish_exactly_one_wins(lab: Lab) -> None:
    worker = await lab.worker()
    for n in range(20):
        job_id = await lab.enqueue(f"0-{n}")
        work = await worker.begin()
        calls = [work.finish(), lab.cancel(job_id)]
        pending = [asyncio.ensure_future(call) for call in (calls if n % 2 else reversed(calls))]
        answers = await asyncio.gather(*pending)
        finished, cancelled = answers if n % 2 else reversed(answers)
        if cancelled.cancelled:
            assert finished[0] == "cancelled"
            assert (await work.finish("cancelled"))[0] == "finished"
        else:
            assert finished[0] == "finished"
        state = (await lab.record(job_id))["state"]
        assert state == ("cancelled" if cancelled.cancelled else "done")
        check_whole(await lab.log(job_id), "")


async def test_of_cancel_and_claim_both_orders_end_the_job_once(lab: Lab) -> None:
    worker = await lab.worker()
    for n in range(10):
        job_id = await lab.enqueue(f"0-{n}")
        [taken] = await worker.take()
        calls = [asyncio.ensure_future(worker.claim(taken)), asyncio.ensure_future(lab.cancel(job_id))]
        claim, outcome = await asyncio.gather(*calls)
        assert outcome.cancelled
        if isinstance(claim, Claim):
            assert (await Work(lab, worker, claim).finish("cancelled"))[0] == "finished"
        check_whole(await lab.log(job_id), "")
        assert (await lab.record(job_id))["state"] == "cancelled"


async def test_of_two_claims_of_one_entry_one_runs(lab: Lab) -> None:
    """A worker that was thought lost comes back as its job is claimed by another."""
    one, other = await lab.worker("w1"), await lab.worker("w2")
    await lab.enqueue()
    [taken] = await one.take()
    claims = await asyncio.gather(one.claim(taken), other.claim(taken))
    assert sum(isinstance(claim, Claim) for claim in claims) == 1
    assert await lab.types() == ["1-0 meta"]
