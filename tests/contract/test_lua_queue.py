"""Into the queue and out of it: enqueue, take, promote, expire, reject, ack."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from deltafan.broker import expiry, upkeep
from deltafan.broker.keys import GROUP, TAKEOVER, partition
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import EXPIRE, PROMOTE
from deltafan.errors import ConflictError, JobNotFound
from deltafan.events import Done, Error
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import RETENTION, K, Lab, open_lab
from tests.oracle import check_whole


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


# enqueue


async def test_enqueue_makes_the_record_the_place_and_the_index(lab: Lab) -> None:
    assert await lab.enqueue_raw(metadata={"a": 1}, channel="c", retention=5) == ("queued", "0-a")
    [(entry, fields)] = await lab.redis.xrange(K.queue("default", "normal"))
    assert fields == {b"id": b"0-a", b"model": b"m"}
    record = await lab.record()
    expected = {"state": "queued", "attempt": "0", "seq": "-1", "entry": entry.decode(), "channel": "c", "deadline": ""}
    assert record.items() >= expected.items()
    assert record["stream"] == K.queue("default", "normal")
    assert orjson.loads(record["spec"])["metadata"] == {"a": 1}
    assert await lab.redis.zscore(K.index("default"), "0-a") == int(record["created"])
    assert abs(int(record["created"]) - await lab.now()) < 5000
    assert await lab.ttl(K.job("0-a")) == -1
    assert not await lab.redis.exists(K.log("0-a"), K.delayed("default"), K.deadlines)


async def test_enqueue_puts_a_job_of_later_among_the_delayed(lab: Lab) -> None:
    assert await lab.enqueue_raw(delay=60, expires_in=10) == ("delayed", "0-a")
    record = await lab.record()
    created = int(record["created"])
    assert (record["state"], record["entry"]) == ("delayed", "")
    assert await lab.redis.zscore(K.delayed("default"), "0-a") == created + 60_000
    assert await lab.redis.zscore(K.deadlines, "0-a") == created + 10_000
    assert await lab.waiting() == []


async def test_enqueue_queues_at_once_what_was_to_run_in_the_past(lab: Lab) -> None:
    assert (await lab.enqueue_raw(run_at="2020-01-01T00:00:00Z"))[0] == "queued"
    assert (await lab.enqueue_raw(job_id="0-b", run_at="2100-01-01T00:00:00Z"))[0] == "delayed"
    assert await lab.redis.zscore(K.delayed("default"), "0-b") == 4102444800000


async def test_enqueue_gives_a_keys_first_job(lab: Lab) -> None:
    await lab.enqueue(idempotency_key="k")
    assert await lab.enqueue_raw(job_id="0-b", idempotency_key="k") == ("same", "0-a")
    assert await lab.waiting() == ["0-a"]
    assert not await lab.redis.exists(K.job("0-b"))
    assert 86_000 < await lab.ttl(K.idempotency("default", "k")) <= 86_400


async def test_enqueue_refuses_a_key_that_belongs_to_another_spec(lab: Lab) -> None:
    await lab.enqueue(idempotency_key="k")
    assert (await lab.enqueue_raw(job_id="0-b", idempotency_key="k", prompt="other"))[:2] == ("conflict", "0-a")
    assert (await lab.enqueue_raw(job_id="0-c", idempotency_key="k", tenant="acme"))[0] == "queued"
    assert await lab.waiting() == ["0-a", "0-c"]


async def test_an_idempotency_key_outlives_a_long_delay_by_a_day(lab: Lab) -> None:
    await lab.enqueue(idempotency_key="k", delay=1_000_000)
    assert 1_086_000 < await lab.ttl(K.idempotency("default", "k")) <= 1_086_400


async def test_enqueue_makes_no_second_job_of_one_id(lab: Lab) -> None:
    await lab.enqueue()
    assert (await lab.enqueue_raw(prompt="other"))[0] == "taken"
    assert orjson.loads((await lab.record())["spec"])["prompt"] == "x"
    assert await lab.waiting() == ["0-a"]


async def test_enqueue_refuses_when_waiting_and_delayed_are_at_the_bound(lab: Lab) -> None:
    await lab.enqueue("0-a", max_queue=2)
    await lab.enqueue("0-b", delay=60, max_queue=2)
    assert (await lab.enqueue_raw(job_id="0-c", max_queue=2))[0] == "full"
    assert not await lab.redis.exists(K.job("0-c"))
    assert (await lab.enqueue_raw(job_id="0-d", max_queue=2, priority="high"))[0] == "queued"


async def test_enqueue_adopts_an_entry_as_the_jobs_place(lab: Lab) -> None:
    worker = await lab.worker()
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b'{"model":"m","prompt":"x"}'})).decode()
    await worker.take()
    assert (await lab.enqueue_raw(adopt=entry, created_ms=1234, max_queue=1))[0] == "queued"
    record = await lab.record()
    assert (record["entry"], record["created"], record["state"]) == (entry, "1234", "queued")
    assert await lab.redis.xlen(K.queue("default", "normal")) == 1
    assert (await lab.enqueue_raw(adopt=entry))[0] == "taken"


async def test_an_adopted_entry_that_must_wait_leaves_the_queue(lab: Lab) -> None:
    worker = await lab.worker()
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b"{}"})).decode()
    await worker.take()
    assert (await lab.enqueue_raw(adopt=entry, delay=60))[0] == "delayed"
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert (await lab.record())["entry"] == ""


@pytest.mark.parametrize(("prompt", "status"), [("x", "same"), ("other", "conflict")])
async def test_an_adopted_entry_whose_key_is_known_is_acknowledged(lab: Lab, prompt: str, status: str) -> None:
    worker = await lab.worker()
    await lab.enqueue(idempotency_key="k", delay=60)
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b"{}"})).decode()
    await worker.take()
    answer = await lab.enqueue_raw(job_id="0-b", adopt=entry, idempotency_key="k", delay=60, prompt=prompt)
    assert answer[:2] == (status, "0-a")
    assert (await lab.waiting(), await lab.pending()) == ([], {})


async def test_a_keys_first_job_is_given_in_its_present_state(queue: AsyncQueue) -> None:
    first = await queue.submit(model="m", prompt="x", idempotency_key="k")
    await queue.job(first.id).cancel()
    again = await queue.submit(model="m", prompt="x", idempotency_key="k")
    assert (again.id, again.state, again.created) == (first.id, "cancelled", False)
    await queue.connections.commands.delete(K.job(first.id))
    with pytest.raises(ConflictError, match="no longer kept; use another key"):
        await queue.submit(model="m", prompt="x", idempotency_key="k")


async def test_metadata_that_python_knows_how_to_write_is_written(queue: AsyncQueue) -> None:
    job = await queue.enqueue(model="m", prompt="x", metadata={"ids": {1: (2, 3)}, "tags": {"a"}})
    assert (await job.status()).metadata == {"ids": {"1": [2, 3]}, "tags": ["a"]}


# take


async def test_take_serves_priorities_in_order_and_no_more_than_asked(lab: Lab) -> None:
    worker = await lab.worker()
    for n, priority in enumerate(("low", "normal", "high", "low", "normal", "high")):
        await lab.enqueue(f"0-{n}", priority=priority)
    await lab.redis.xadd(K.queue("default", TAKEOVER), {"id": "0-lost"})
    assert [t.job_id for t in await worker.take(2)] == ["0-lost", "0-2"]
    assert [t.job_id for t in await worker.take(3)] == ["0-5", "0-1", "0-4"]
    assert [t.job_id for t in await worker.take(9)] == ["0-0", "0-3"]
    assert await worker.take(9) == []


async def test_what_one_worker_took_no_other_gets(lab: Lab) -> None:
    one, other = await lab.worker("w1"), await lab.worker("w2")
    await lab.enqueue()
    [taken] = await one.take(5)
    assert await other.take(5) == []
    assert await lab.pending() == {taken.entry: "w1"}


# promote


async def _promote(lab: Lab, job_id: str = "0-a") -> int:
    keys = [K.job(job_id), K.delayed("default"), K.queue("default", "normal")]
    return int(await lab.script(PROMOTE, keys, job_id, "m"))


async def test_promote_moves_a_job_whose_time_has_come(lab: Lab) -> None:
    await lab.enqueue(delay=60)
    assert await _promote(lab) == 0
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1})
    assert await _promote(lab) == 1
    record = await lab.record()
    [(entry, fields)] = await lab.redis.xrange(K.queue("default", "normal"))
    assert fields == {b"id": b"0-a", b"model": b"m"}
    assert (record["state"], record["entry"]) == ("queued", entry.decode())
    assert await _promote(lab) == 0
    assert await lab.waiting() == ["0-a"]


async def test_promote_queues_no_job_that_has_ended_or_is_gone(lab: Lab) -> None:
    await lab.enqueue(delay=60)
    await lab.cancel()
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1, "0-gone": 1})
    assert await _promote(lab) == 0
    assert await _promote(lab, "0-gone") == 0
    assert await lab.waiting() == []
    assert await lab.redis.zcard(K.delayed("default")) == 0


async def test_promoting_keeps_the_priority_and_tells_when_the_next_is_due(lab: Lab) -> None:
    await lab.enqueue("0-a", delay=60, priority="low")
    await lab.enqueue("0-b", delay=120)
    await lab.redis.zadd(K.delayed("default"), {"0-a": 1})
    following = await upkeep.promote(lab.redis, 0, "default")
    assert following is not None
    assert 100 < following <= 120
    assert await lab.waiting("low") == ["0-a"]
    await lab.redis.delete(K.delayed("default"))
    assert await upkeep.promote(lab.redis, 0, "default") is None


# expire


async def _expire(lab: Lab, stream: str = K.queue("default", "normal")) -> str:
    keys = [K.job("0-a"), K.log("0-a"), K.live("0-a"), stream, K.delayed("default"), K.deadlines, K.expiries]
    answer: bytes = await lab.script(EXPIRE, keys, "0-a", GROUP, RETENTION.retention)
    return answer.decode()


async def _late(lab: Lab) -> None:
    """The deadline has passed."""
    await lab.redis.hset(K.job("0-a"), "deadline", "1")
    await lab.redis.zadd(K.deadlines, {"0-a": 1})


@pytest.mark.parametrize("delay", [0, 60])
async def test_expire_ends_a_job_that_waited_too_long(lab: Lab, delay: float) -> None:
    await lab.enqueue(delay=delay, expires_in=100)
    assert await _expire(lab) == "early"
    await _late(lab)
    async with lab.heard(K.live("0-a")) as published:
        assert await _expire(lab) == "expired"
    log = await lab.log()
    transcript = check_whole(log, "")
    assert await lab.types() == ["1-0 meta", "1-1 error", "1-2 done"]
    assert transcript.error == Error("expired", "not started within expires_in", id=log[1].id, job="0-a")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "expired"
    assert [fields[b"e"] for _, fields in await lab.redis.xrange(K.log("0-a"))] == published
    record = await lab.record()
    assert (record["state"], record["entry"], record["seq"], record["attempt"]) == ("expired", "", "2", "1")
    assert await lab.waiting() == []
    assert not await lab.redis.exists(K.delayed("default"), K.deadlines)
    for key in (K.job("0-a"), K.log("0-a")):
        assert 90 < await lab.ttl(key) <= 100
    assert await _expire(lab) == "no"
    assert len(await lab.log()) == 3


async def test_expire_looks_again_for_a_job_that_has_moved(lab: Lab) -> None:
    await lab.enqueue(expires_in=100)
    await _late(lab)
    assert await _expire(lab, K.queue("default", "high")) == "moved"
    assert (await lab.record())["state"] == "queued"


async def test_expire_leaves_a_job_that_has_begun(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue(expires_in=100)
    work = await worker.begin()
    await _late(lab)
    assert await _expire(lab) == "no"
    await work.retry()
    await _late(lab)
    assert await _expire(lab) == "no"  # it waits for its second attempt: it has started
    assert not await lab.redis.exists(K.deadlines)
    assert (await lab.record())["state"] == "delayed"


async def test_the_expired_are_found_and_counted(lab: Lab) -> None:
    await lab.enqueue(expires_in=100)
    assert await expiry.expire(lab.redis, 0, RETENTION) == 0
    await _late(lab)
    await lab.redis.zadd(K.deadlines, {"0-gone": 1})
    assert await expiry.expire(lab.redis, 0, RETENTION) == 1
    assert not await lab.redis.exists(K.deadlines)


# reject: an entry that was XADDed by hand


async def test_reject_buries_what_is_no_job_and_tells_followers(lab: Lab) -> None:
    worker = await lab.worker()
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b"{nonsense" + b"\xff" * 9000})).decode()
    job_id = f"0-default-normal-{entry}"
    [taken] = await worker.take()
    async with lab.heard(K.live(job_id)) as published:
        assert await worker.claim(taken) is None
    transcript = check_whole(await lab.log(job_id), "")
    assert transcript.error is not None
    assert transcript.error.code == "bad_request"
    assert "is not JSON" in transcript.error.message
    assert len(published) == 3
    [row] = await lab.redis.xrange(K.dead("default"))
    assert row[1][b"job"] == b"{nonsense" + b"\xff" * (4096 - 9)
    assert orjson.loads(row[1][b"errors"])[0]["code"] == "bad_request"
    record = await lab.record(job_id)
    assert (record["state"], record["finish_reason"]) == ("failed", "error")
    assert await lab.redis.zscore(K.index("default"), job_id) is not None
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    assert 90 < await lab.ttl(K.job(job_id)) <= 100


async def test_reject_does_not_touch_the_record_of_another_job(lab: Lab) -> None:
    """Two entries name the same id; the second is no job."""
    worker = await lab.worker()
    await lab.enqueue("0-mine", delay=60)
    await lab.redis.xadd(K.queue("default", "normal"), {"id": "0-mine", "job": b"[]"})
    [taken] = await worker.take()
    assert await worker.claim(taken) is None
    assert (await lab.record("0-mine"))["state"] == "delayed"
    assert len(await lab.dead()) == 1
    assert (await lab.log("0-mine"), await lab.waiting()) == ([], [])


async def test_a_cancelled_entry_that_no_worker_has_seen_ends_and_never_runs(lab: Lab) -> None:
    worker = await lab.worker()
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b'{"model":"m","prompt":"x"}'})).decode()
    job_id = f"0-default-normal-{entry}"
    outcome = await lab.cancel(job_id)
    assert (outcome.state, outcome.cancelled) == ("cancelled", True)
    last = (await lab.log(job_id))[-1]
    assert isinstance(last, Done)
    assert last.finish_reason == "cancelled"
    assert await worker.take() == []
    assert await lab.dead() == []
    assert (await lab.cancel(job_id)).cancelled
    with pytest.raises(JobNotFound):
        await lab.cancel("0-default-normal-1-0")


async def test_an_entry_that_a_worker_read_and_that_is_cancelled_is_not_begun(lab: Lab) -> None:
    worker = await lab.worker()
    entry = (await lab.redis.xadd(K.queue("default", "normal"), {"job": b'{"model":"m","prompt":"x"}'})).decode()
    [taken] = await worker.take()
    await lab.cancel(f"0-default-normal-{entry}")
    assert await worker.claim(taken) is None
    check_whole(await lab.log(taken.job_id), "")


# ack


async def test_ack_takes_the_entry_out_and_notes_the_sinks(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    work = await worker.begin()
    assert (await work.finish(acknowledge=False))[0] == "finished"
    assert (await lab.waiting(), len(await lab.pending())) == (["0-a"], 1)
    await worker.claims.acknowledge(work.claim.taken, "0-a", {"sinks": b'{"s":1}'})
    assert (await lab.waiting(), await lab.pending()) == ([], {})
    record = await lab.record()
    assert (record["entry"], record["sinks"]) == ("", '{"s":1}')


async def test_ack_leaves_the_place_that_the_job_has_meanwhile(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    await lab.redis.hset(K.job("0-a"), "entry", "77-0")
    await worker.claims.acknowledge(taken, "0-a", {})
    assert (await lab.record())["entry"] == "77-0"


async def test_ack_makes_no_record_of_a_job_that_has_expired(lab: Lab) -> None:
    worker = await lab.worker()
    await lab.enqueue()
    [taken] = await worker.take()
    await lab.redis.delete(K.job("0-a"))
    await worker.claims.acknowledge(taken, "0-a", {"sinks": b"{}"})
    assert not await lab.redis.exists(K.job("0-a"))
    assert (await lab.waiting(), await lab.pending()) == ([], {})


async def test_the_sweeper_takes_expired_jobs_out_of_the_index(lab: Lab) -> None:
    await lab.enqueue()
    await lab.enqueue("0-b", tenant="acme corp")
    await lab.cancel()
    await lab.cancel("0-b")
    assert await expiry.sweep(lab.redis, 0) == 0
    await lab.redis.zadd(K.expiries, {"default 0-a": 1, "acme corp 0-b": 1})
    assert await expiry.sweep(lab.redis, 0) == 2
    assert not await lab.redis.exists(K.index("default"), K.index("acme corp"), K.expiries)


def test_every_key_of_a_job_is_in_one_slot() -> None:
    keys = partition("3-x")
    named = [
        keys.job("3-x"),
        keys.log("3-x"),
        keys.live("3-x"),
        *keys.queues("q"),
        keys.delayed("q"),
        keys.deadlines,
    ]
    named += [
        keys.dead("q"),
        keys.index("t"),
        keys.expiries,
        keys.idempotency("t", "k"),
        keys.worker("w"),
        keys.control,
    ]
    assert {key.partition("}")[0] for key in named} == {"deltafan:{3"}
