"""`GET /v1/stats`: the numbers are right, one sample serves all, and nothing crosses tenants."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.events import Usage
from deltafan.relay import stats
from deltafan.settings import RedisSettings, TokenSettings
from tests.conftest import StartWorker
from tests.e2e.relay_kit import SPEC, HandWorker, Stream, eventually, running_relay

TOKENS = TokenSettings(token_keys=("k1=" + "s" * 40,))
KEYS = ("default=my-key-0123", "default:read+enqueue=reader-key-01", "other=their-key-0")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def stats_of(http: aiohttp.ClientSession, url: str, key: str | None = None) -> dict[str, Any]:
    async with http.get(f"{url}/v1/stats", headers=bearer(key) if key else {}) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def test_depths_tell_what_waits_by_priority_what_runs_and_what_is_delayed(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    for priority, number in (("high", 1), ("normal", 2), ("low", 3)):
        for _ in range(number):
            await queue.enqueue(SPEC, priority=priority)
    await queue.enqueue(SPEC, delay=60)
    await queue.enqueue(SPEC, queue="batch")
    work = await worker.take()
    await work.say("Hi")
    async with running_relay(queue) as relay:
        found = await stats_of(http, relay.url)
    by_name = {depth["queue"]: depth for depth in found["queues"]}
    assert by_name["default"] == {
        "queue": "default",
        "waiting": {"takeover": 0, "high": 0, "normal": 2, "low": 3},
        "running": 1,
        "delayed": 1,
        "dead": 0,
    }
    assert by_name["batch"]["waiting"]["normal"] == 1
    (running,) = [job for job in found["jobs"] if job["state"] == "running"]
    assert (running["id"], running["attempt"], running["seq"], running["text_length"]) == (work.id, 1, 1, 2)
    assert len(found["jobs"]) == 8


async def test_jobs_come_with_tokens_cost_and_latency(
    queue: AsyncQueue, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    running = await start_worker()
    jobs = [await queue.enqueue(model="gpt-5-mini", prompt="x") for _ in range(3)]
    results = [await job.result(10) for job in jobs]
    async with running_relay(queue) as relay:
        found = await stats_of(http, relay.url)
    tokens = sum(result.usage.completion_tokens or 0 for result in results if result.usage)
    assert tokens > 0
    assert found["rates"]["tokens_per_second"] == pytest.approx(tokens / 10, abs=0.1)
    assert found["rates"]["ended_per_second"] == 0.3
    assert found["rates"]["created_per_second"] == 0.3
    assert found["latency"]["total"]["count"] == 3
    assert found["latency"]["first_token"]["p50"] <= found["latency"]["total"]["p95"]
    assert {job["id"] for job in found["jobs"]} == {job.id for job in jobs}
    created = [job["created"] for job in found["jobs"]]
    assert created == sorted(created, reverse=True)
    assert all(job["cost_usd"] > 0 and job["completion_tokens"] > 0 for job in found["jobs"])
    (beat,) = found["workers"]
    assert beat["name"] == running.engine.worker


async def test_a_stream_brings_sample_after_sample_and_events_a_second(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "INTERVAL", 0.1)
    async with (
        running_relay(queue) as relay,
        http.get(f"{relay.url}/v1/stats", headers={"Accept": "text/event-stream"}) as answer,
    ):
        stream = Stream(answer)
        first = await stream.next()
        assert first is not None
        assert first.event == "stats"
        await queue.enqueue(SPEC)
        work = await worker.take()
        await work.say(*["word "] * 50)
        async with asyncio.timeout(10):
            while True:
                event = await stream.next()
                assert event is not None
                if (orjson.loads(event.data)["rates"]["events_per_second"] or 0) > 0:
                    break
        await work.say(Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, source="reported"))
        await work.finish()
        async with asyncio.timeout(10):
            while orjson.loads(event.data)["jobs"][0]["state"] != "done":
                event = await stream.next()
                assert event is not None


async def test_one_sample_serves_all_viewers_and_none_is_taken_when_nobody_looks(
    queue: AsyncQueue, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = stats.Sampler._take

    async def counted(sampler: stats.Sampler, elapsed: float) -> dict[str, Any]:
        taken.append(1)
        return await take(sampler, elapsed)

    monkeypatch.setattr(stats.Sampler, "_take", counted)
    monkeypatch.setattr(stats, "INTERVAL", 0.2)
    async with running_relay(queue) as relay:
        answers = [await http.get(f"{relay.url}/v1/stats", headers={"Accept": "text/event-stream"}) for _ in range(20)]
        streams = [Stream(answer) for answer in answers]
        for stream in streams:
            await stream.next()
        before = len(taken)
        seen = [[(await stream.next()) for _ in range(3)] for stream in streams]
        assert len(taken) - before < 30
        assert len({event.data for events in seen for event in events if event}) <= len(taken)
        assert (await stats_of(http, relay.url))["streams"]["open"] == 20
        for answer in answers:
            answer.close()

        async def nobody_looks() -> bool:
            count = len(taken)
            await asyncio.sleep(0.5)
            return len(taken) == count

        await eventually(nobody_looks)


async def test_a_relay_that_drains_ends_its_streams_of_numbers(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    async with running_relay(queue, relay_drain=10.0) as relay:
        answer = await http.get(f"{relay.url}/v1/stats", headers={"Accept": "text/event-stream"})
        stream = Stream(answer)
        await stream.next()
        relay.stop.set()
        async with asyncio.timeout(5):
            await stream.rest()
            await relay.task


async def test_only_a_key_with_the_right_admin_sees_numbers_and_those_of_its_tenant_only(
    redis_settings: RedisSettings, http: aiohttp.ClientSession
) -> None:
    async with (
        AsyncQueue(redis_settings, tokens=TOKENS) as queue,
        AsyncQueue(redis_settings, tenant="other") as others,
        running_relay(queue, tokens=TOKENS, api_keys=KEYS) as relay,
    ):
        mine = await queue.enqueue(SPEC)
        theirs = await others.enqueue(SPEC, queue="their-secret-plan")
        token = queue.token(mine)
        for given, status in ((None, 401), ("wrong-key-000", 401), ("reader-key-01", 403), (token, 403)):
            async with http.get(f"{relay.url}/v1/stats", headers=bearer(given) if given else {}) as answer:
                assert answer.status == status
        found = await stats_of(http, relay.url, "my-key-0123")
        assert [job["id"] for job in found["jobs"]] == [mine.id]
        assert [depth["queue"] for depth in found["queues"]] == ["default"]
        found = await stats_of(http, relay.url, "their-key-0")
        assert [job["id"] for job in found["jobs"]] == [theirs.id]
        assert [depth["queue"] for depth in found["queues"]] == ["default", "their-secret-plan"]


async def test_numbers_of_several_partitions_are_added_up(
    redis_settings: RedisSettings, http: aiohttp.ClientSession
) -> None:
    spread = redis_settings.model_copy(update={"partitions": 4})
    async with AsyncQueue(spread) as queue, running_relay(queue) as relay:
        for _ in range(12):
            await queue.enqueue(SPEC)
        found = await stats_of(http, relay.url)
    (depth,) = found["queues"]
    assert depth["waiting"]["normal"] == 12
    assert len(found["jobs"]) == 12
