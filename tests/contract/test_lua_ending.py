"""How a worker lets go of a job: finish, retry, release."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from deltafan.broker import upkeep
from deltafan.broker.claims import Claim
from deltafan.broker.keys import TAKEOVER
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import K, Lab, Work, open_lab
from tests.oracle import check_whole


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


async def _begun(lab: Lab, text: str = "hi", **fields: Any) -> Work:
    worker = await lab.worker()
    await lab.enqueue(**fields)
    work = await worker.begin()
    await work.say(text)
    return work


async def _away(lab: Lab) -> None:
    """Another worker has the job."""
    [worker] = lab.workers.values()
    await worker.die()
    [entry] = await lab.pending()
    [taken] = [t for t in await worker.held() if t.entry == entry]
    assert await lab.reap(worker.name, taken) == "moved"
    await (await lab.worker("w2")).begin()


# finish


async def test_finish_writes_the_end_and_leaves_nothing_in_the_queue(lab: Lab) -> None:
    work = await _begun(lab, channel="own")
    async with lab.heard(K.live("0-a"), "own") as published:
        assert await work.finish() == ("finished", 3)
    log = [fields[b"e"] for _, fields in await lab.redis.xrange(K.log("0-a"))]
    assert published == [log[2], log[2], log[3], log[3]]
    check_whole(await lab.log(), "hi")
    record = await lab.record()
    expected = {"state": "done", "seq": "3", "owner": "", "entry": "", "finish_reason": "stop", "chars": "2"}
    assert record.items() >= expected.items()
    assert abs(int(record["ended"]) - await lab.now()) < 5000
    assert (await lab.waiting(), await lab.pending(), await lab.dead()) == ([], {}, [])


async def test_an_ended_jobs_log_and_record_expire_together(lab: Lab) -> None:
    work = await _begun(lab, retention=50)
    await work.finish()
    for key in (K.job("0-a"), K.log("0-a")):
        assert 45 < await lab.ttl(key) <= 50
    due = await lab.redis.zscore(K.expiries, "default 0-a")
    assert due is not None
    assert 45_000 < due - await lab.now() <= 50_000


async def test_finish_leaves_the_entry_while_sinks_are_served(lab: Lab) -> None:
    work = await _begun(lab)
    assert (await work.finish(acknowledge=False))[0] == "finished"
    assert (await lab.waiting(), len(await lab.pending())) == (["0-a"], 1)
    assert (await lab.record())["entry"] == work.claim.taken.entry


async def test_who_has_lost_an_ended_job_does_not_say_what_its_sinks_have_got(lab: Lab) -> None:
    work = await _begun(lab)
    await work.finish(acknowledge=False)
    await work.worker.die()
    assert await lab.reap("w1", work.claim.taken) == "moved"
    other = await lab.worker("w2")
    [taken] = await other.take()
    await work.worker.claims.acknowledge(work.claim.taken, "0-a", {"sinks": b'{"of":"w1"}'})
    assert (await lab.record())["entry"] == taken.entry
    await other.claims.acknowledge(taken, "0-a", {"sinks": b'{"of":"w2"}'})
    await work.worker.claims.acknowledge(work.claim.taken, "0-a", {"sinks": b'{"of":"w1"}'})
    assert ((await lab.record())["sinks"], (await lab.record())["entry"]) == ('{"of":"w2"}', "")


@pytest.mark.parametrize("acknowledge", [True, False])
async def test_finish_again_after_a_lost_reply_changes_nothing(lab: Lab, acknowledge: bool) -> None:
    work = await _begun(lab)
    await work.finish(acknowledge=False)
    before = await lab.record()
    async with lab.heard(K.live("0-a")) as published:
        assert await work.finish(acknowledge=acknowledge) == ("duplicate", 3)
    assert published == []
    assert (await lab.record()) | {"entry": ""} == before | {"entry": ""}
    assert (await lab.pending() == {}) == acknowledge
    check_whole(await lab.log(), "hi")


async def test_a_cancel_that_came_first_wins(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.cancel()
    assert await work.finish() == ("cancelled", 1)
    assert (await lab.record())["state"] == "running"
    assert len(await lab.log()) == 2
    assert await work.finish("cancelled") == ("finished", 3)
    assert (await lab.record())["state"] == "cancelled"
    transcript = check_whole(await lab.log(), "hi")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"


@pytest.mark.parametrize("first", [1, 5])
async def test_finish_where_the_log_ends_elsewhere_is_a_gap(lab: Lab, first: int) -> None:
    work = await _begun(lab)
    assert await work.finish(first=first) == ("gap", 1)
    assert (await lab.record())["state"] == "running"
    assert len(await lab.log()) == 2


async def test_finish_of_an_evicted_log_asks_for_all_of_it(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.redis.delete(K.log("0-a"))
    assert await work.finish() == ("gap", -1)
    assert not await lab.redis.exists(K.log("0-a"))


@pytest.mark.parametrize("end", ["finish", "retry"])
async def test_an_end_that_found_no_log_has_all_of_it_written_again(lab: Lab, end: str) -> None:
    """Else the backfill would be taken for what the log has, and be asked for again, for ever."""
    work = await _begun(lab)
    await lab.redis.delete(K.log("0-a"))
    assert await getattr(work, end)() == ("gap", -1)
    assert (await work.append("meta", "a", first=0))[:2] == ["appended", 1]
    assert (await getattr(work, end)())[0] in ("finished", "delayed")


async def test_finish_of_a_lost_job_is_fenced(lab: Lab) -> None:
    work = await _begun(lab)
    await _away(lab)
    assert await work.finish() == ("fenced", -1)
    record = await lab.record()
    assert (record["state"], record["owner"], record["attempt"]) == ("running", "w2", "2")


async def test_finish_of_a_job_that_is_gone_says_so(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.redis.delete(K.job("0-a"))
    assert await work.finish() == ("gone", -1)
    assert not await lab.redis.exists(K.job("0-a"))


async def test_a_failure_is_noted_and_buried_with_every_attempts_error(lab: Lab) -> None:
    work = await _begun(lab)
    await work.retry()
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1})
    from_the_delayed = await _again(lab)
    status, _ = await from_the_delayed.finish("failed", dead="quota", error=b'{"attempt":2,"code":"quota"}')
    assert status == "finished"
    [letter] = await lab.dead()
    assert (letter["id"], letter["reason"], letter["tenant"]) == ("0-a", "quota", "default")
    assert orjson.loads(letter["job"])["prompt"] == "x"
    errors = orjson.loads(letter["errors"])
    assert [(error["attempt"], error["code"]) for error in errors] == [(1, "connection"), (2, "quota")]
    record = await lab.record()
    assert (orjson.loads(record["errors"]), record["failures"]) == (errors, "2")
    again = await from_the_delayed.finish("failed", dead="quota", error=b"{}")
    assert again[0] == "duplicate"
    assert (await lab.record())["failures"] == "2"
    assert len(await lab.dead()) == 1


async def _again(lab: Lab) -> Work:
    """The next attempt, once the wait is over."""
    await upkeep.promote(lab.redis, 0, "default")
    return await lab.workers["w1"].begin()


# retry


async def test_retry_writes_why_and_waits_among_the_delayed(lab: Lab) -> None:
    work = await _begun(lab)
    async with lab.heard(K.live("0-a")) as published:
        assert await work.retry(wait=60) == ("delayed", 3)
    assert len(published) == 2
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 usage", "1-3 error"]
    record = await lab.record()
    expected = {"state": "delayed", "failures": "1", "owner": "", "entry": "", "seq": "3", "chars": "2"}
    assert record.items() >= expected.items()
    due = await lab.redis.zscore(K.delayed("default"), "0-a")
    assert due is not None
    assert 55_000 < due - await lab.now() <= 60_000
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert await lab.ttl(K.job("0-a")) == -1


async def test_retry_again_after_a_lost_reply_charges_once(lab: Lab) -> None:
    work = await _begun(lab)
    await work.retry()
    assert await work.retry() == ("duplicate", 3)
    record = await lab.record()
    assert record["failures"] == "1"
    assert len(orjson.loads(record["errors"])) == 1
    assert len(await lab.log()) == 4


async def test_a_cancelled_job_is_not_retried(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.cancel()
    assert await work.retry() == ("cancelled", 1)
    assert (await lab.record())["failures"] == "0"
    assert not await lab.redis.exists(K.delayed("default"))


async def test_retry_refuses_a_gap_a_stranger_and_what_is_gone(lab: Lab) -> None:
    work = await _begun(lab)
    assert await work.retry(first=5) == ("gap", 1)
    kept = await lab.redis.dump(K.log("0-a"))
    await lab.redis.delete(K.log("0-a"))
    assert await work.retry() == ("gap", -1)
    await lab.redis.restore(K.log("0-a"), 0, kept)
    await _away(lab)
    assert await work.retry() == ("fenced", -1)
    assert not await lab.redis.exists(K.delayed("default"))
    await lab.redis.delete(K.job("0-a"))
    assert await work.retry() == ("gone", -1)


async def test_the_attempt_after_a_retry_restarts(lab: Lab) -> None:
    work = await _begun(lab)
    await work.retry()
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1})
    second = await _again(lab)
    assert (second.claim.attempt, second.claim.how, second.claim.failures) == (2, "restart", 1)
    await second.say("anew")
    await second.finish()
    check_whole(await lab.log(), "anew")


# release


async def test_release_hands_the_job_over_before_all_waiting_ones_and_charges_nothing(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.enqueue("0-b", priority="high")
    assert await work.release() == "released"
    record = await lab.record()
    expected = {
        "state": "queued",
        "failures": "0",
        "owner": "",
        "lost": "handed_over",
        "usage": '{"source":"estimated"}',
    }
    assert record.items() >= expected.items()
    assert record["stream"] == K.queue("default", TAKEOVER)
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    other = await lab.worker("w2")
    second = await other.begin()
    assert (second.id, second.claim.attempt, second.claim.failures, second.claim.how) == ("0-a", 2, 0, "restart")
    assert second.claim.usage == b'{"source":"estimated"}'
    assert await work.release() == "fenced"


async def test_release_settles_the_usage_that_an_earlier_worker_lost(lab: Lab) -> None:
    """The releasing worker has estimated it into the sum; the next one must not add it again."""
    await _begun(lab)
    await _away(lab)
    [worker] = [w for name, w in lab.workers.items() if name == "w2"]
    assert (await lab.record())["usage_lost"] == "1"
    [taken] = await worker.held()
    claim = await worker.claim(taken)
    assert isinstance(claim, Claim)
    assert claim.usage_lost == 1
    assert await Work(lab, worker, claim).release() == "released"
    assert (await lab.record())["usage_lost"] == ""


async def test_a_cancelled_job_is_not_handed_over(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.cancel()
    assert await work.release() == "cancelled"
    assert (await lab.record())["state"] == "running"


async def test_release_refuses_a_stranger_and_what_is_gone(lab: Lab) -> None:
    work = await _begun(lab)
    await _away(lab)
    assert await work.release() == "fenced"
    await lab.redis.delete(K.job("0-a"))
    assert await work.release() == "gone"
    assert not await lab.redis.exists(K.job("0-a"))
