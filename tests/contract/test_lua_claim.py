"""Claim begins attempts; append writes them. Who is not the owner any more is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio

from deltafan.broker.claims import Claim, Ended
from deltafan.broker.scripts import APPEND
from deltafan.events import Meta, TextDelta
from deltafan.settings import RedisSettings
from deltafan.wire import decode
from tests.contract.lua_kit import K, Lab, Work, open_lab
from tests.oracle import check_order, check_whole


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


def _meta(claim: Claim) -> Meta:
    meta = decode(claim.meta)
    assert isinstance(meta, Meta)
    return meta


async def _lose(lab: Lab, text: str = "said", **fields: Any) -> None:
    """A job that a worker began, said something of, and was lost with; it waits to be taken over."""
    worker = await lab.worker("lost")
    await lab.enqueue(**fields)
    work = await worker.begin()
    if text:
        await work.say(text)
    await worker.die()
    assert await lab.reap("lost", work.claim.taken) == "moved"


# claim


async def test_claim_counts_the_attempt_names_its_owner_and_writes_its_meta(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(metadata={"user": 7}, expires_in=100)
    async with lab.heard(K.live("0-a")) as published:
        work = await worker.begin()
    claim = work.claim
    meta = _meta(claim)
    assert (claim.attempt, claim.how, claim.failures, claim.usage, claim.chars) == (1, "fresh", 0, b"", 0)
    assert (meta.attempt, meta.model, meta.provider, meta.metadata) == (1, "m", "openai", {"user": 7})
    assert (meta.restart, meta.continued, meta.created) == (False, False, claim.claimed)
    assert published == [claim.meta]
    assert await lab.log() == [meta]
    record = await lab.record()
    expected = {"state": "running", "attempt": "1", "seq": "0", "owner": "w1", "provider": '"openai"', "how": "fresh"}
    assert record.items() >= expected.items()
    assert (record["max_attempts"], record["retention"], record["started"]) == ("3", "100.0", record["claimed"])
    assert not await lab.redis.exists(K.deadlines)
    assert 900 < await lab.ttl(K.log("0-a")) <= 1000
    assert await lab.ttl(K.job("0-a")) == -1


async def test_what_the_job_asked_for_wins_over_the_workers_settings(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(max_attempts=7, retention=5)
    await worker.begin()
    record = await lab.record()
    assert (record["max_attempts"], record["retention"]) == ("7", "5.0")


async def test_claiming_again_after_a_lost_reply_gives_the_same_attempt(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    work = await worker.begin()
    again = await worker.claim(work.claim.taken)
    assert isinstance(again, Claim)
    assert (again.attempt, again.meta, again.how, again.created) == (1, work.claim.meta, "fresh", work.claim.created)
    assert await lab.types() == ["1-0 meta"]


async def test_an_attempt_of_ours_that_broke_off_is_not_gone_on_with(lab: Lab) -> None:
    """Its text is in the log; a second run of the same attempt would be taken for a repetition of it."""
    worker = await lab.worker()
    await lab.enqueue(max_attempts=2)
    work = await worker.begin()
    await work.say("half")
    again = await worker.claim(work.claim.taken)
    assert isinstance(again, Claim)
    assert (again.attempt, again.failures, again.how, again.usage_lost) == (2, 1, "restart", 1)
    assert (await work.append("late"))[0] == "fenced"
    work.claim, work.seq, work.text = again, 1, ""
    await work.say("more")
    ended = await worker.claim(again.taken)
    assert ended == Ended(again.taken, "0-a", "failed", "server_error")
    assert [error["attempt"] for error in orjson.loads((await lab.record())["errors"])] == [1, 2]
    transcript = check_whole(await lab.log())
    assert transcript.error is not None
    assert transcript.error.code == "server_error"
    assert [letter["reason"] for letter in await lab.dead()] == ["server_error"]


async def test_a_job_that_another_worker_runs_is_left_to_it(lab: Lab) -> None:
    worker, other = await lab.worker("w1"), await lab.worker("w2")
    await lab.enqueue()
    work = await worker.begin()
    assert await other.claim(work.claim.taken) is None
    assert (await lab.record())["owner"] == "w1"
    assert len(await lab.pending()) == 1


async def test_an_entry_whose_job_has_another_place_is_dropped(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    await lab.redis.hset(K.job("0-a"), "entry", "77-0")
    assert await worker.claim(taken) is None
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert (await lab.record())["state"] == "queued"
    assert await lab.log() == []


async def test_an_entry_without_a_record_is_dropped(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    await lab.redis.delete(K.job("0-a"))
    assert await worker.claim(taken) is None
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert not await lab.redis.exists(K.job("0-a"), K.log("0-a"))


async def test_a_job_that_has_ended_is_not_run_again(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    work = await worker.begin()
    await work.finish(acknowledge=False)
    before = await lab.types()
    assert await worker.claim(work.claim.taken) == Ended(work.claim.taken, "0-a", "done", "")
    assert await lab.types() == before


async def test_a_job_past_its_deadline_expires_instead_of_starting(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(expires_in=100)
    [taken] = await worker.take()
    await lab.redis.hset(K.job("0-a"), "deadline", "1")
    assert await worker.claim(taken) == Ended(taken, "0-a", "expired", "expired")
    assert await lab.types() == ["1-0 meta", "1-1 error", "1-2 done"]
    assert 90 < await lab.ttl(K.job("0-a")) <= 100


async def test_a_deadline_counts_only_until_the_first_attempt(lab: Lab) -> None:
    await _lose(lab, expires_in=100)
    await lab.redis.hset(K.job("0-a"), "deadline", "1")
    work = await (await lab.worker("w2")).begin()
    assert work.claim.attempt == 2


async def test_a_takeover_fails_where_the_job_wants_that(lab: Lab) -> None:
    await _lose(lab, on_takeover="fail")
    worker = await lab.worker("w2")
    [taken] = await worker.take()
    assert await worker.claim(taken) == Ended(taken, "0-a", "failed", "worker_lost")
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 usage", "1-3 error", "1-4 done"]
    transcript = check_whole(await lab.log())
    assert transcript.error is not None
    assert transcript.error.code == "worker_lost"
    assert transcript.usage is not None
    assert transcript.usage.source == "unknown"
    assert [letter["id"] for letter in await lab.dead()] == ["0-a"]


async def test_a_takeover_of_a_job_that_said_nothing_does_not_fail(lab: Lab) -> None:
    await _lose(lab, text="", on_takeover="fail")
    work = await (await lab.worker("w2")).begin()
    assert (work.claim.attempt, work.claim.how) == (2, "fresh")


@pytest.mark.parametrize(
    ("can_continue", "fields", "how"),
    [(True, {}, "continued"), (False, {}, None), (True, {"tools": ["t"]}, None), (True, {"params": {"n": 2}}, None)],
)
async def test_a_job_that_is_not_to_restart_is_handed_over_only_where_it_can_go_on(
    lab: Lab, can_continue: bool, fields: dict[str, Any], how: str | None
) -> None:
    worker = await lab.worker("leaving")
    await lab.enqueue(on_takeover="fail", **fields)
    work = await worker.begin()
    await work.say("said")
    assert await work.release() == "released"
    other = await lab.worker("w2")
    [taken] = await other.take()
    claim = await other.claim(taken, can_continue=can_continue)
    if how is not None:
        assert isinstance(claim, Claim)
        assert (claim.how, claim.chars, claim.failures) == (how, 4, 0)
        return
    assert claim == Ended(taken, "0-a", "failed", "worker_lost")
    transcript = check_whole(await lab.log())
    assert transcript.error is not None
    assert transcript.error.code == "worker_lost"
    [letter] = await lab.dead()
    assert [(e["attempt"], e["message"]) for e in orjson.loads(letter["errors"])] == [(1, "its worker was shut down")]
    assert (await lab.record())["failures"] == "1"


async def test_a_new_attempt_voids_what_was_said(lab: Lab) -> None:
    await _lose(lab)
    work = await (await lab.worker("w2")).begin(can_continue=True)
    meta = _meta(work.claim)
    assert (work.claim.attempt, work.claim.how, meta.restart, meta.continued) == (2, "restart", True, False)
    record = await lab.record()
    assert (record["chars"], record["visible"]) == ("0", "")
    await work.say("anew")
    await work.finish()
    check_whole(await lab.log(), "anew")


@pytest.mark.parametrize(
    ("can_continue", "text", "how"), [(True, "said", "continued"), (False, "said", "restart"), (True, "", "fresh")]
)
async def test_a_new_attempt_goes_on_where_model_and_text_allow(
    lab: Lab, can_continue: bool, text: str, how: str
) -> None:
    await _lose(lab, text=text, on_takeover="continue")
    work = await (await lab.worker("w2")).begin(can_continue=can_continue)
    meta = _meta(work.claim)
    assert (work.claim.how, work.claim.chars) == (how, len(text) if how == "continued" else 0)
    assert (meta.restart, meta.continued) == (how == "restart", how == "continued")
    again = await work.worker.claim(work.claim.taken)
    assert isinstance(again, Claim)
    assert (again.how, again.chars) == (work.claim.how, work.claim.chars)


async def test_a_model_and_metadata_of_any_text_go_into_meta(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(model='a"\\b', metadata={'q"\\\u2028\x00': "%s %d 🌊"})
    meta = _meta((await worker.begin()).claim)
    assert (meta.model, meta.metadata) == ('a"\\b', {'q"\\\u2028\x00': "%s %d 🌊"})


# append


async def test_append_writes_publishes_and_counts(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(channel="own")
    work = await worker.begin()
    async with lab.heard(K.live("0-a"), "own") as published:
        assert await work.append("a", "b", chars=2, channel="own") == ["appended", 2, 0, 2]
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 text_delta"]
    log = [fields[b"e"] for _, fields in await lab.redis.xrange(K.log("0-a"))]
    assert published == [log[1], log[1], log[2], log[2]]
    record = await lab.record()
    assert (record["seq"], record["chars"], record["visible"]) == ("2", "2", "1")


async def test_append_says_when_nobody_listens_and_when_nothing_is_to_be_seen(lab: Lab) -> None:
    work = await _begun(lab)
    assert await work.append("", visible=0) == ["appended", 1, 0, 0]
    assert "visible" not in await lab.record()


async def _begun(lab: Lab, **fields: Any) -> Work:
    worker = await lab.worker()
    await lab.enqueue(**fields)
    return await worker.begin()


async def test_append_renews_the_logs_expiry_when_told(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.redis.pexpire(K.log("0-a"), 5000)
    await work.append("a", first=1)
    assert await lab.ttl(K.log("0-a")) <= 5
    await work.append("b", first=2, idle_ms=90_000)
    assert 80 < await lab.ttl(K.log("0-a")) <= 90


async def test_append_again_is_a_duplicate_and_writes_nothing(lab: Lab) -> None:
    work = await _begun(lab)
    await work.append("a", "b", first=1)
    async with lab.heard(K.live("0-a")) as published:
        assert await work.append("a", "b", first=1) == ["duplicate", 2, 0, -1]
        assert await work.append("a", first=1) == ["duplicate", 2, 0, -1]
    assert published == []
    assert len(await lab.log()) == 3


async def test_append_writes_only_what_is_new_of_a_batch_half_known(lab: Lab) -> None:
    work = await _begun(lab)
    await work.append("a", "b", first=1)
    async with lab.heard(K.live("0-a")) as published:
        assert (await work.append("a", "b", "c", "d", first=1))[:2] == ["appended", 4]
    assert len(published) == 2
    assert "".join(getattr(e, "text", "") for e in check_order(await lab.log())) == "abcd"


async def test_append_refuses_a_gap_and_tells_the_last_it_has(lab: Lab) -> None:
    work = await _begun(lab)
    await work.append("a", first=1)
    assert await work.append("c", first=3) == ["gap", 1, 0, 0]
    assert len(await lab.log()) == 2


async def test_append_never_begins_an_evicted_log_with_a_hole(lab: Lab) -> None:
    work = await _begun(lab)
    await work.append("a", first=1)
    await lab.redis.delete(K.log("0-a"))
    assert await work.append("b", first=2) == ["gap", -1, 0, 0]
    assert not await lab.redis.exists(K.log("0-a"))
    data = [work.claim.meta, *work.encoded(1, TextDelta("a"), TextDelta("b"))]
    keys = [K.job("0-a"), K.log("0-a"), K.live("0-a")]
    from_the_start = [1, "w1", 0, 2, 1, 60_000, ""]
    answer = await lab.script(APPEND, keys, *from_the_start, *data)
    assert answer[:2] == [b"appended", 2]
    assert await lab.types() == ["1-0 meta", "1-1 text_delta", "1-2 text_delta"]
    assert await lab.ttl(K.log("0-a")) > 50
    assert (await work.append("c", first=3))[0] == "appended"


async def test_append_of_another_worker_or_attempt_is_fenced(lab: Lab) -> None:
    work = await _begun(lab)
    assert (await work.append("a", worker="w2"))[0] == "fenced"
    assert (await work.append("a", attempt=2))[0] == "fenced"
    assert len(await lab.log()) == 1


async def test_append_after_the_end_or_the_takeover_is_fenced(lab: Lab) -> None:
    await _lose(lab)
    zombie = lab.workers["lost"]
    work = await (await lab.worker("w2")).begin()
    late = await work.append("late", worker=zombie.name, attempt=1, first=2)
    assert late[0] == "fenced"
    await work.finish()
    assert (await work.append("later", first=3))[0] == "fenced"
    check_whole(await lab.log())


async def test_append_to_a_job_that_is_gone_says_so(lab: Lab) -> None:
    work = await _begun(lab)
    await lab.redis.delete(K.job("0-a"))
    assert await work.append("a") == ["gone", -1, 0, 0]
    assert not await lab.redis.exists(K.job("0-a"))


@pytest.mark.parametrize(("first", "status"), [(1, "appended"), (9, "gap")])
async def test_every_answer_of_append_tells_of_a_cancel(lab: Lab, first: int, status: str) -> None:
    work = await _begun(lab)
    assert (await lab.cancel()).state == "cancelling"
    assert (await work.append("a", first=first))[:3:2] == [status, 1]
    if status == "appended":
        assert (await work.append("a", first=first))[:3:2] == ["duplicate", 1]
        assert (await work.append("a", worker="w2"))[:3:2] == ["fenced", 1]


async def test_a_restored_log_whose_record_is_older_is_asked_from_there(lab: Lab) -> None:
    """Redis came back from an older state: log and record both lost the same tail."""
    work = await _begun(lab)
    await work.append("a", "b", "c", first=1)
    await lab.redis.delete(K.log("0-a"))
    await lab.redis.xadd(K.log("0-a"), {"e": work.claim.meta}, id="1-0")
    await lab.redis.hset(K.job("0-a"), "seq", 0)
    assert await work.append("d", first=4) == ["gap", 0, 0, 0]
    assert (await work.append("a", "b", "c", "d", first=1))[:2] == ["appended", 4]
    check_order(await lab.log())
