"""Every job ends, once, whatever happens to it: failures, retries, cancels, lost and draining workers."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from deltafan.broker.connections import Connections
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, Text, parse_faults, running
from deltafan.engine.engine import Engine
from deltafan.engine.services import Services
from deltafan.errors import JobFailed
from deltafan.events import Error, Event, Meta, TextDelta, Usage
from deltafan.settings import RedisSettings
from deltafan.sinks.base import JobInfo
from deltafan.sinks.memory import MemorySink
from tests.conftest import StartWorker, completions_of
from tests.oracle import check_whole

NOWHERE = "redis://127.0.0.1:1/0"
TEXT = "The quick brown fox jumps over the lazy dog. " * 6


async def _all(queue: AsyncQueue, job_id: str) -> list[Event]:
    return [event async for event in queue.job(job_id).events()]


async def _until_text(queue: AsyncQueue, job_id: str) -> None:
    events = queue.job(job_id).events()
    async for event in events:
        if isinstance(event, TextDelta):
            break
    await events.aclose()


async def _queues_are_empty(queue: AsyncQueue) -> bool:
    redis = queue.connections.commands
    for priority in ("takeover", "high", "normal", "low"):
        if await redis.xlen(f"deltafan:{{0}}:queue:default:{priority}"):
            return False
    return not await redis.zcard("deltafan:{0}:delayed:default")


async def _finally_empty(queue: AsyncQueue) -> None:
    """`done` is seen a moment before the entry is acknowledged where further sinks wait."""
    async with asyncio.timeout(5):
        while not await _queues_are_empty(queue):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("authentication", "authentication"),
        ("permission", "permission"),
        ("model_not_found", "model_not_found"),
        ("context_length", "context_length"),
        ("bad_request", "bad_request"),
        ("quota", "quota"),
    ],
)
async def test_a_failure_that_cannot_pass_ends_the_job_at_once(
    queue: AsyncQueue, start_worker: StartWorker, fault: str, code: str
) -> None:
    async with running(Script(faults=parse_faults(fault))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x")
        transcript = check_whole(await _all(queue, job.id), "")
        assert len(failing.requests) == 1
    assert transcript.error is not None
    assert (transcript.error.code, transcript.error.will_retry) == (code, False)
    assert transcript.usage is not None
    status = await job.status()
    assert (status.state, status.failures) == ("failed", 0) or status.state == "failed"
    assert status.error is not None
    assert status.error["code"] == code
    [(_, letter)] = await queue.connections.commands.xrange("deltafan:{0}:dead:default")
    assert letter[b"id"].decode() == job.id
    assert orjson.loads(letter[b"errors"])[0]["code"] == code
    with pytest.raises(JobFailed) as failed:
        await job.result()
    assert failed.value.code == code
    await _finally_empty(queue)


@pytest.mark.parametrize("fault", ["server_error", "rate_limit=0", "cut=0", "close=0", "error=0", "malformed=1"])
async def test_before_the_first_delta_a_retry_is_not_seen(
    queue: AsyncQueue, start_worker: StartWorker, fault: str
) -> None:
    async with running(Script(source=Text(TEXT), faults=parse_faults(f"{fault}*1"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x")
        events = await _all(queue, job.id)
        check_whole(events, TEXT)
        assert len(failing.requests) == 2
    assert [event.attempt for event in events if isinstance(event, Meta)] == [1]
    assert not [event for event in events if isinstance(event, Error)]


@pytest.mark.parametrize("fault", ["cut=5", "close=5", "error=5", "malformed=5"])
async def test_after_the_first_delta_a_new_attempt_says_so(
    queue: AsyncQueue, start_worker: StartWorker, fault: str
) -> None:
    async with running(Script(source=Text(TEXT), rate=200, faults=parse_faults(f"{fault}*1"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x")
        events = await _all(queue, job.id)
    transcript = check_whole(events, TEXT)
    metas = [event for event in events if isinstance(event, Meta)]
    assert [(meta.attempt, meta.restart) for meta in metas] == [(1, False), (2, True)]
    [error] = [event for event in events if isinstance(event, Error)]
    assert error.will_retry
    assert transcript.done is not None
    assert transcript.done.finish_reason == "stop"
    status = await job.status()
    assert (status.state, status.attempt, status.failures) == ("done", 2, 1)
    assert status.usage is not None
    assert status.usage["source"] == "estimated"  # of the attempt that failed; the sum is no better than its parts
    last = [event for event in events if isinstance(event, Usage)][-1]
    assert last.source == "reported"
    assert status.usage["completion_tokens"] > (last.completion_tokens or 0)


async def test_a_job_that_keeps_failing_becomes_a_dead_letter_with_every_attempts_error(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with running(Script(source=Text(TEXT), faults=parse_faults("cut=3"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x", max_attempts=3)
        events = await _all(queue, job.id)
    transcript = check_whole(events)
    errors = [event for event in events if isinstance(event, Error)]
    assert [error.will_retry for error in errors] == [True, True, False]
    assert transcript.done is not None
    assert transcript.done.finish_reason == "error"
    [(_, letter)] = await queue.connections.commands.xrange("deltafan:{0}:dead:default")
    assert [error["attempt"] for error in orjson.loads(letter[b"errors"])] == [1, 2, 3]
    assert [error["attempt"] for error in (await job.status()).attempt_errors] == [1, 2, 3]


async def test_a_stalled_provider_times_out(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(faults=parse_faults("stall"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x", first_token_timeout=0.05, max_attempts=1)
        transcript = check_whole(await _all(queue, job.id), "")
    assert transcript.error is not None
    assert transcript.error.code == "timeout_first_token"


async def test_a_stream_that_falls_silent_times_out(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT), chunk_size=4, faults=parse_faults("stall=4"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="y", stall_timeout=0.05, max_attempts=1)
        transcript = check_whole(await _all(queue, job.id))
    assert transcript.error is not None
    assert transcript.error.code == "timeout_stall"
    assert transcript.text == TEXT[:16]


async def test_a_waiting_job_that_is_cancelled_ends_and_never_runs(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    queued = await queue.enqueue(model="m", prompt="x")
    delayed = await queue.enqueue(model="m", prompt="x", delay=0.1)
    for job in (queued, delayed):
        assert (await job.cancel()).state == "cancelled"
        transcript = check_whole(await _all(queue, job.id), "")
        assert transcript.done is not None
        assert transcript.done.finish_reason == "cancelled"
        assert (await job.status()).state == "cancelled"
        assert (await job.cancel()).cancelled
    await _finally_empty(queue)
    await start_worker()
    other = await queue.enqueue(model="m", prompt="other", delay=0.2)
    await other.result(timeout=5)
    assert len(provider.requests) == 1


async def test_a_job_xadded_by_hand_can_be_cancelled_before_a_worker_has_seen_it(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    spec = orjson.dumps({"model": "m", "prompt": "x"})
    entry = await queue.connections.commands.xadd("deltafan:{0}:queue:default:normal", {"job": spec})
    job = queue.job(f"0-default-normal-{entry.decode()}")
    assert (await job.cancel()).state == "cancelled"
    await start_worker()
    transcript = check_whole(await _all(queue, job.id), "")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"
    await (await queue.enqueue(model="m", prompt="y")).result(timeout=5)
    assert len(provider.requests) == 1
    assert await queue.connections.commands.xlen("deltafan:{0}:dead:default") == 0


async def test_cancelling_a_running_job_stops_the_provider(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT * 50), rate=100)) as slow:
        await start_worker(slow)
        job = await queue.enqueue(model="m", prompt="x")
        await _until_text(queue, job.id)
        assert (await job.cancel()).state == "cancelling"
        transcript = check_whole(await _all(queue, job.id))
        await slow.until(lambda requests: requests[0].client_closed)
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"
    assert transcript.usage is not None
    assert transcript.usage.source == "estimated"
    status = await job.status()
    assert status.state == "cancelled"
    assert (await job.cancel()).cancelled
    await _finally_empty(queue)


async def test_a_cancel_whose_message_is_lost_is_found(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT * 50), rate=50)) as slow:
        await start_worker(slow)
        job = await queue.enqueue(model="m", prompt="x")
        await _until_text(queue, job.id)
        await queue.connections.commands.hset(f"deltafan:{{0}}:job:{job.id}", "cancel", "1")
        transcript = check_whole(await _all(queue, job.id))
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"


async def test_a_cancel_before_the_end_wins_over_it(queue: AsyncQueue, start_worker: StartWorker) -> None:
    """The flag is set and no message sent, while the last chunk is on its way: the end must not say `stop`."""
    async with running(Script(source=Text("short"), first_token_delay=0.2)) as slow:
        await start_worker(slow, lease=60)
        job = await queue.enqueue(model="m", prompt="x")
        await slow.until(lambda requests: bool(requests))
        await queue.connections.commands.hset(f"deltafan:{{0}}:job:{job.id}", "cancel", "1")
        transcript = check_whole(await _all(queue, job.id))
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"
    assert (await job.status()).state == "cancelled"


async def test_the_job_of_a_lost_worker_is_taken_over(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT), rate=40)) as slow:
        lost = await start_worker(slow)
        job = await queue.enqueue(model="m", prompt="x")
        follower = asyncio.create_task(_all(queue, job.id))
        await _until_text(queue, job.id)
        await lost.vanish()
        await start_worker(slow)
        events = await follower
    check_whole(events, TEXT)
    assert [(e.attempt, e.restart) for e in events if isinstance(e, Meta)] == [(1, False), (2, True)]
    status = await job.status()
    assert (status.state, status.attempt, status.failures) == ("done", 2, 1)
    assert status.attempt_errors[0]["code"] == "worker_lost"
    assert status.usage is not None
    assert status.usage["source"] == "estimated"
    await _finally_empty(queue)


async def test_a_takeover_goes_on_from_the_text_where_the_model_can(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with running(Script(source=Text(TEXT), rate=40)) as slow:
        lost = await start_worker(slow)
        job = await queue.enqueue(model="vllm/m", prompt="x", on_takeover="continue")
        follower = asyncio.create_task(_all(queue, job.id))
        await _until_text(queue, job.id)
        await lost.vanish()
        await start_worker(slow)
        events = await follower
        transcript = check_whole(events)
        assert transcript.text == TEXT
        assert slow.requests[-1].text is not None
        assert 0 < len(slow.requests[-1].text) < len(TEXT)
    assert [(e.restart, e.continued) for e in events if isinstance(e, Meta)] == [(False, False), (False, True)]
    streamed = "".join(e.text for e in events if isinstance(e, TextDelta))
    assert streamed == TEXT


async def test_on_takeover_fail_ends_the_job(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT), rate=40)) as slow:
        lost = await start_worker(slow)
        job = await queue.enqueue(model="m", prompt="x", on_takeover="fail")
        await _until_text(queue, job.id)
        await lost.vanish()
        await start_worker(slow)
        transcript = check_whole(await _all(queue, job.id))
        assert len(slow.requests) == 1
    assert transcript.error is not None
    assert transcript.error.code == "worker_lost"
    assert (await job.status()).state == "failed"


async def test_on_takeover_fail_lets_no_second_attempt_make_void_what_was_said(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with running(Script(source=Text(TEXT), faults=parse_faults("cut=3"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(model="m", prompt="x", on_takeover="fail")
        transcript = check_whole(await _all(queue, job.id))
        assert len(failing.requests) == 1
    assert transcript.text != ""
    assert transcript.error is not None
    assert (transcript.error.code, transcript.error.will_retry) == ("connection", False)
    async with running(Script(source=Text(TEXT), faults=parse_faults("server_error*1"))) as silent:
        await start_worker(silent, queues=("silent",))
        job = await queue.enqueue(model="m", prompt="x", on_takeover="fail", queue="silent")
        check_whole(await _all(queue, job.id), TEXT)


async def test_a_job_xadded_by_hand_goes_on_from_its_text_where_its_model_can(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with running(Script(source=Text(TEXT), rate=40)) as slow:
        lost = await start_worker(slow)
        raw = orjson.dumps({"model": "vllm/m", "prompt": "x", "on_takeover": "continue"})
        entry = await queue.connections.commands.xadd("deltafan:{0}:queue:default:normal", {"job": raw})
        job = queue.job(f"0-default-normal-{entry.decode()}")
        async with asyncio.timeout(10):
            while len(slow.requests) == 0 or slow.requests[0].chunks < 3:
                await asyncio.sleep(0.02)
        await lost.vanish()
        await start_worker(slow)
        events = await _all(queue, job.id)
    assert check_whole(events).text == TEXT
    metas = [event for event in events if isinstance(event, Meta)]
    assert [(meta.provider, meta.continued) for meta in metas] == [("vllm", False), ("vllm", True)]


async def test_a_job_whose_worker_is_lost_each_time_becomes_a_dead_letter(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with running(Script(source=Text(TEXT * 20), rate=40)) as slow:
        job = await queue.enqueue(model="m", prompt="x", max_attempts=2)
        for attempt in (1, 2):
            lost = await start_worker(slow)
            async with asyncio.timeout(10):
                while (await job.status()).attempt < attempt or (await job.status()).state != "running":
                    await asyncio.sleep(0.02)
            await lost.vanish()
        await start_worker(slow)
        transcript = check_whole(await _all(queue, job.id))
    assert transcript.error is not None
    assert transcript.error.code == "worker_lost"
    assert transcript.usage is not None
    assert transcript.usage.source == "unknown"
    status = await job.status()
    assert (status.state, status.failures) == ("failed", 2)
    [(_, letter)] = await queue.connections.commands.xrange("deltafan:{0}:dead:default")
    assert [e["code"] for e in orjson.loads(letter[b"errors"])] == ["worker_lost", "worker_lost"]
    await _finally_empty(queue)


async def test_a_draining_worker_hands_its_jobs_over_unharmed(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT), rate=40)) as slow:
        leaving = await start_worker(slow, drain=0.1, lease=30, reap_interval=30)
        jobs = [await queue.enqueue(model="m", prompt=str(n)) for n in range(10)]
        followers = [asyncio.create_task(_all(queue, job.id)) for job in jobs]
        for job in jobs:
            await _until_text(queue, job.id)
        await start_worker(slow, lease=30, reap_interval=30)
        await leaving.drain()
        for job, follower in zip(jobs, followers, strict=True):
            check_whole(await follower, TEXT)
            status = await job.status()
            assert (status.state, status.failures) == ("done", 0)
            assert status.attempt in (1, 2)
    await _finally_empty(queue)


async def test_a_worker_that_waits_for_redis_can_be_stopped(provider: Provider) -> None:
    async with completions_of(provider) as (completions, llm), Connections(RedisSettings(url=NOWHERE)) as connections:
        stop, waiting = asyncio.Event(), asyncio.Event()
        services = Services(completions=completions, llm=llm, hook=lambda signal: waiting.set())
        running = asyncio.create_task(Engine(services, connections).run(stop, asyncio.Event()))
        async with asyncio.timeout(10):
            await waiting.wait()
            stop.set()
            await running


async def test_a_draining_worker_lets_streams_finish(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text(TEXT), rate=400)) as slow:
        leaving = await start_worker(slow, drain=10)
        job = await queue.enqueue(model="m", prompt="x")
        follower = asyncio.create_task(_all(queue, job.id))
        await _until_text(queue, job.id)
        await leaving.drain()
        check_whole(await follower, TEXT)
    status = await job.status()
    assert (status.state, status.attempt) == ("done", 1)


async def test_a_further_sink_gets_every_event_and_a_slow_one_hurts_only_itself(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    sinks: dict[str, MemorySink] = {}
    gate = asyncio.Event()

    class Slow(MemorySink):
        async def emit(self, batch):  # type: ignore[no-untyped-def]
            await gate.wait()
            await super().emit(batch)

    class Flaky(MemorySink):
        failures = 3

        async def emit(self, batch):  # type: ignore[no-untyped-def]
            if self.failures:
                self.failures -= 1
                raise RuntimeError("try again")
            await super().emit(batch)

    def factory(name: str, kind: type[MemorySink]):  # type: ignore[no-untyped-def]
        async def make(job: JobInfo) -> MemorySink:
            return sinks.setdefault(name, kind())

        return make

    registry = {"fast": factory("fast", MemorySink), "slow": factory("slow", Slow), "flaky": factory("flaky", Flaky)}
    async with running(Script(source=Text(TEXT), rate=500)) as paced:
        await start_worker(paced, services={"sinks": registry}, sink_budget=10)
        job = await queue.enqueue(model="m", prompt="x", sinks=["fast", "slow", "flaky"])
        check_whole(await _all(queue, job.id), TEXT)
        gate.set()
        await _finally_empty(queue)
    for sink in sinks.values():
        check_whole(sink.events, TEXT)
        assert sink.closed
    status = await job.status()
    assert {name: sink["state"] for name, sink in status.sinks.items()} == dict.fromkeys(sinks, "delivered")


async def test_a_sink_that_stays_behind_is_named_and_does_not_keep_the_job(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    class Dead(MemorySink):
        async def emit(self, batch):  # type: ignore[no-untyped-def]
            raise ConnectionError("no route")

    async def make(job: JobInfo) -> MemorySink:
        return Dead()

    await start_worker(services={"sinks": {"dead": make}}, sink_budget=0.2)
    job = await queue.enqueue(model="m", prompt="x", sinks=["dead"])
    assert (await job.result(timeout=5)).text
    await _finally_empty(queue)
    [sink] = (await job.status()).sinks.values()
    assert sink["state"] == "behind"
    assert "no route" in sink["error"]


async def test_an_unknown_sink_is_named(queue: AsyncQueue, start_worker: StartWorker) -> None:
    await start_worker()
    job = await queue.enqueue(model="m", prompt="x", sinks=["telegram"])
    with pytest.raises(JobFailed, match="telegram"):
        await job.result(timeout=5)
    await _finally_empty(queue)
