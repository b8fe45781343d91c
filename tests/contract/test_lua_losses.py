"""What the scripts make of what Redis has lost: its latest writes, a log, a group, a place in the pending list."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deltafan.broker import upkeep
from deltafan.broker.claims import Claim
from deltafan.broker.keys import GROUP
from deltafan.engine.history import read_history
from deltafan.events import Done, EventId, Meta
from deltafan.llm.usage import estimate
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import K, Lab, Work, open_lab
from tests.oracle import check_whole

STREAM = K.queue("default", "normal")


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


async def _begun(lab: Lab, text: str = "hi", *, name: str = "w1", **fields: object) -> Work:
    worker = await lab.worker(name)
    await lab.enqueue(**fields)  # type: ignore[arg-type]
    work = await worker.begin()
    await work.say(text)
    return work


async def _another_life(lab: Lab) -> None:
    """As if Redis had been started again since the job's record was written."""
    assert len((await lab.record())["run"]) == 40
    await lab.redis.hset(K.job("0-a"), "run", "0" * 40)


# The latest writes


async def test_after_a_restart_of_redis_no_id_comes_again(lab: Lab) -> None:
    """The first attempt may be what was lost, and followers may have seen it."""
    await lab.enqueue()
    await _another_life(lab)
    claim = (await (await lab.worker()).begin()).claim
    assert (claim.attempt, claim.how, claim.failures) == (11, "restart", 0)
    [meta] = await lab.log()
    assert isinstance(meta, Meta)
    assert meta.restart
    assert meta.id == EventId(11, 0)


async def test_within_one_life_of_redis_attempts_count_from_one(lab: Lab) -> None:
    await lab.enqueue()
    claim = (await (await lab.worker()).begin()).claim
    assert (claim.attempt, claim.how) == (1, "fresh")


async def test_text_is_not_gone_on_from_where_its_tail_may_be_lost(lab: Lab) -> None:
    work = await _begun(lab, on_takeover="continue")
    await work.release()
    await _another_life(lab)
    claim = (await work.worker.begin(can_continue=True)).claim
    assert (claim.how, claim.chars) == ("restart", 0)


async def test_an_end_that_redis_has_lost_is_no_failure_of_its_attempt(lab: Lab) -> None:
    """The worker has acknowledged the job, and Redis shows it as running again."""
    work = await _begun(lab, max_attempts=1)
    await _another_life(lab)
    claim = await work.worker.claim(work.claim.taken)
    assert isinstance(claim, Claim)
    assert (claim.attempt, claim.failures, claim.usage_lost) == (12, 0, 1)
    assert (await work.append("late"))[0] == "fenced"


async def test_attempts_whose_numbers_are_left_out_were_not_paid_for(lab: Lab) -> None:
    work = await _begun(lab)
    await _another_life(lab)
    claim = await work.worker.claim(work.claim.taken)
    assert isinstance(claim, Claim)
    lost = (await read_history(lab.redis, claim)).usage
    assert lost == estimate(claim.spec.chat(), len("hi"))


async def test_a_claim_is_repeated_only_within_one_life_of_redis(lab: Lab) -> None:
    """What Redis shows as an attempt's beginning may be all that it kept of a long one."""
    worker = await lab.worker()
    await lab.enqueue()
    work = await worker.begin()
    await _another_life(lab)
    again = await worker.claim(work.claim.taken)
    assert isinstance(again, Claim)
    assert again.attempt == 12


async def test_the_end_of_a_job_nobody_runs_reaches_those_who_have_seen_more(lab: Lab) -> None:
    await lab.enqueue()
    await _another_life(lab)
    await lab.cancel()
    assert await lab.types() == ["11-0 meta", "11-1 done"]
    check_whole(await lab.log(), "")
    assert (await lab.record())["attempt"] == "11"


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed by the worker", "noticed by nobody"])
async def test_a_lost_workers_last_end_reaches_those_who_have_seen_the_lost_log(lab: Lab, noticed: bool) -> None:
    work = await _begun(lab, max_attempts=1)
    await lab.redis.delete(K.log("0-a"))
    if noticed:
        assert (await work.append("b"))[0] == "gap"
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "failed"
    events = await lab.log()
    check_whole(events, "")
    assert isinstance(events[-1], Done)
    assert events[-1].id == EventId(2, 3)
    assert events[-1].text_length == 0


async def test_a_lost_log_is_not_gone_on_from(lab: Lab) -> None:
    work = await _begun(lab, on_takeover="continue")
    await work.release()
    await lab.redis.delete(K.log("0-a"))
    claim = (await work.worker.begin(can_continue=True)).claim
    assert (claim.attempt, claim.how) == (2, "restart")


# The group


async def test_who_gets_what_another_one_runs_gives_it_back(lab: Lab) -> None:
    work = await _begun(lab)
    other = await lab.worker("w2")
    await lab.redis.xgroup_destroy(STREAM, GROUP)
    await other.intake.ensure_groups()
    [taken] = await other.take()
    assert await lab.pending() == {taken.entry: "w2"}
    assert await other.claim(taken) is None
    assert await lab.pending() == {taken.entry: "w1"}
    await work.say("!")
    assert (await work.finish())[0] == "finished"
    assert (await lab.waiting(), await lab.pending()) == ([], {})


async def test_what_comes_back_to_a_dead_worker_is_reaped(lab: Lab) -> None:
    work = await _begun(lab)
    other = await lab.worker("w2")
    await lab.redis.xgroup_destroy(STREAM, GROUP)
    await work.worker.die()
    await other.intake.ensure_groups()
    [taken] = await other.take()
    assert await other.claim(taken) is None
    assert await lab.reap("w1", taken) == "moved"
    claim = (await other.begin()).claim
    assert (claim.attempt, claim.failures) == (2, 1)


async def test_a_dead_worker_loses_no_job_of_a_living_one(lab: Lab) -> None:
    """It had got the entry from a group that was made anew, and died before it looked."""
    work = await _begun(lab)
    other = await lab.worker("w2")
    await lab.redis.xgroup_destroy(STREAM, GROUP)
    await other.intake.ensure_groups()
    [taken] = await other.take()
    await other.die()
    assert await lab.reap("w2", taken) == "returned"
    assert await lab.pending() == {taken.entry: "w1"}
    assert (await lab.record())["failures"] == "0"
    assert (await work.append("!"))[0] == "appended"


# Entries that nobody holds


async def _loses(lab: Lab, entry: str, how: str) -> None:
    if how == "XACK":
        await lab.redis.xack(STREAM, GROUP, entry)
    else:
        await lab.redis.xgroup_delconsumer(STREAM, GROUP, "w1")
    assert await lab.pending() == {}


@pytest.mark.parametrize("how", ["XACK", "DELCONSUMER"])
async def test_an_entry_that_nobody_holds_is_found(lab: Lab, how: str) -> None:
    worker, finder = await lab.worker(), await lab.worker("w2")
    await lab.enqueue()
    [taken] = await worker.take()
    await _loses(lab, taken.entry, how)
    assert await upkeep.gather(lab.redis, 0, "default", "w2") == 1
    assert await lab.pending() == {taken.entry: "w2"}
    assert await upkeep.gather(lab.redis, 0, "default", "w2") == 0
    [found] = await finder.held()
    claim = await finder.claim(found)
    assert isinstance(claim, Claim)
    assert claim.attempt == 1


@pytest.mark.parametrize("how", ["XACK", "DELCONSUMER"])
async def test_an_entry_that_nobody_holds_of_a_job_that_runs_goes_to_its_worker(lab: Lab, how: str) -> None:
    work = await _begun(lab)
    finder = await lab.worker("w2")
    await _loses(lab, work.claim.taken.entry, how)
    assert await upkeep.gather(lab.redis, 0, "default", "w2") == 1
    [found] = await finder.held()
    assert await finder.claim(found) is None
    assert await lab.pending() == {found.entry: "w1"}


async def test_only_what_nobody_holds_is_gathered(lab: Lab) -> None:
    """Between entries that are held, and before those that wait."""
    worker = await lab.worker()
    for name in "abcdef":
        await lab.enqueue(f"0-{name}")
    taken = await worker.take(4)
    for lost in (taken[0], taken[2]):
        await lab.redis.xack(STREAM, GROUP, lost.entry)
    found = 0
    while again := await upkeep.gather(lab.redis, 0, "default", "w2"):
        found += again
    assert found == 2
    held = await lab.pending()
    assert {entry for entry, holder in held.items() if holder == "w2"} == {taken[0].entry, taken[2].entry}
    assert {entry for entry, holder in held.items() if holder == "w1"} == {taken[1].entry, taken[3].entry}


async def test_where_there_is_no_queue_or_no_group_nothing_is_gathered(lab: Lab) -> None:
    assert await upkeep.gather(lab.redis, 0, "default", "w2") == 0
    await lab.enqueue()
    await lab.redis.xgroup_destroy(STREAM, GROUP)
    assert await upkeep.gather(lab.redis, 0, "default", "w2") == 0


# What a worker's heartbeat finds out


async def test_a_worker_learns_which_of_its_attempts_are_not_its_own_any_more(lab: Lab) -> None:
    worker = await lab.worker()
    for name in "abcd":
        await lab.enqueue(f"0-{name}")
    for _ in range(4):
        await worker.begin()
    await lab.redis.delete(K.job("0-b"))
    await lab.redis.hset(K.job("0-c"), "owner", "w2")
    await lab.cancel("0-d")
    attempts = [(f"0-{name}", 1) for name in "abcd"] + [("0-a", 2)]
    wanted = await upkeep.stops_wanted(lab.redis, "w1", attempts)
    assert wanted == [None, "gone", "fenced", "cancelled", "fenced"]
