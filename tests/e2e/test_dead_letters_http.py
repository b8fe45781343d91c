"""`/v1/dead`: a tenant's dead letters are listed, run again and dropped, and a wrong request is told why."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from deltafan.broker import letters
from deltafan.broker.queue import AsyncQueue
from deltafan.events import Done
from deltafan.settings import RedisSettings
from tests.e2e.cli_kit import cli
from tests.e2e.relay_kit import SPEC, HandWorker, running_relay

KEYS = ("default=my-key-0123", "default:read+enqueue+cancel=reader-key-01", "other=their-key-0")
MINE = {"Authorization": "Bearer my-key-0123"}
THEIRS = {"Authorization": "Bearer their-key-0"}


async def die(queue: AsyncQueue, worker: HandWorker, **fields: Any) -> str:
    """A job that failed for good."""
    await queue.enqueue(SPEC, **fields)
    work = await worker.take()
    outcome, _ = await worker.claims.finish(
        work.claim,
        work.seq,
        work.encoded(Done(finish_reason="error", text_length=0, timings={"total": 5.0})),
        "failed",
        {"finish_reason": "error", "error": b'{"code":"bad_request","message":"no such thing"}'},
        acknowledge=True,
        dead="bad_request",
        error=b'{"attempt":1,"code":"bad_request","message":"no such thing"}',
    )
    assert outcome == "finished"
    return work.id


async def call(
    http: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    async with http.request(method, url, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_dead_letter_is_listed_with_its_reason_and_retried_as_a_new_job(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    dead = await die(queue, worker, metadata={"chat": 7})
    async with running_relay(queue) as relay:
        status, found = await call(http, "GET", f"{relay.url}/v1/dead")
        assert status == 200
        assert found["more"] is False
        (letter,) = found["dead"]
        assert (letter["id"], letter["queue"], letter["model"]) == (dead, "default", "scripted")
        assert letter["reason"] == "bad_request"
        assert letter["errors"][-1]["message"] == "no such thing"
        assert not {"tenant", "job"} & set(letter)
        status, retried = await call(http, "POST", f"{relay.url}/v1/dead/{dead}/retry")
        assert status == 202
        assert (retried["state"], retried["retry_of"]) == ("queued", dead)
        assert retried["id"] != dead
        again = await worker.take()
        assert again.id == retried["id"]
        assert again.claim.spec.metadata == {"chat": 7}
        assert (await call(http, "GET", f"{relay.url}/v1/dead"))[1]["dead"] == []
        status, said = await call(http, "POST", f"{relay.url}/v1/dead/{dead}/retry")
        assert (status, said["error"]["code"]) == (409, "not_dead")
        assert "retried or dropped before" in said["error"]["message"]


async def test_who_asks_twice_at_once_gets_one_new_job(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    dead = await die(queue, worker, idempotency_key="mine")
    async with running_relay(queue) as relay:
        answers = await asyncio.gather(*(call(http, "POST", f"{relay.url}/v1/dead/{dead}/retry") for _ in range(5)))
    made = {said["id"] for status, said in answers if status == 202}
    assert len(made) == 1
    assert [job.id for job in (await queue.jobs()).jobs if job.retry_of == dead] == list(made)


async def test_a_dropped_letter_is_gone_and_its_job_is_not(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    dead = await die(queue, worker)
    async with running_relay(queue) as relay:
        assert await call(http, "DELETE", f"{relay.url}/v1/dead/{dead}") == (200, {"id": dead, "dropped": True})
        assert (await call(http, "DELETE", f"{relay.url}/v1/dead/{dead}"))[0] == 409
        assert (await call(http, "GET", f"{relay.url}/v1/jobs/{dead}"))[1]["state"] == "failed"


async def test_a_job_that_is_not_dead_is_told_so_and_an_unknown_one_is_not_found(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, redis_url: str
) -> None:
    running = await queue.enqueue(SPEC)
    assert (await worker.take()).id == running.id
    dead = await die(queue, worker)
    only_dead = f"job '{running.id}' is running: only a job that failed for good has a dead letter"
    async with running_relay(queue) as relay:
        status, said = await call(http, "POST", f"{relay.url}/v1/dead/{running.id}/retry")
        assert (status, said["error"]["code"]) == (409, "not_dead")
        assert said["error"]["message"] == only_dead
        status, said = await call(http, "POST", f"{relay.url}/v1/dead/{dead}/retry?queue=batch")
        assert status == 409
        assert "is of queue 'default'" in said["error"]["message"]
        for unknown in ("0-nobody", "nonsense!", "x" * 200):
            assert (await call(http, "POST", f"{relay.url}/v1/dead/{unknown}/retry"))[0] == 404
        for query, field in (("queue=NO", "queue"), ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit")):
            status, said = await call(http, "GET", f"{relay.url}/v1/dead?{query}")
            assert (status, said["error"]["fields"][0]["field"]) == (422, field)
    ended = await cli("dead", "retry", running.id, REDIS_URL=redis_url)
    assert ended.code != 0
    assert ended.err == f"deltafan: {only_dead}\n"


async def test_nobody_sees_retries_or_drops_another_tenants_letters(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    async with AsyncQueue(redis_settings, tenant="other") as others:
        theirs = await die(others, worker)
        mine = await die(queue, worker)
    async with running_relay(queue, api_keys=KEYS) as relay:
        url = f"{relay.url}/v1/dead"
        assert [letter["id"] for letter in (await call(http, "GET", url, MINE))[1]["dead"]] == [mine]
        assert [letter["id"] for letter in (await call(http, "GET", url, THEIRS))[1]["dead"]] == [theirs]
        for method, path in (("POST", f"{url}/{theirs}/retry"), ("DELETE", f"{url}/{theirs}")):
            assert (await call(http, method, path, MINE))[0] == 404
            assert (await call(http, method, path))[0] == 401
            assert (await call(http, method, path, {"Authorization": "Bearer reader-key-01"}))[0] == 403
        assert (await call(http, "GET", url, {"Authorization": "Bearer reader-key-01"}))[0] == 403
        assert len((await call(http, "GET", url, THEIRS))[1]["dead"]) == 1


async def test_a_listing_is_bounded_and_says_that_there_is_more(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "_PAGE", 2)
    dead = [await die(queue, worker) for _ in range(5)]
    async with running_relay(queue) as relay:
        found = (await call(http, "GET", f"{relay.url}/v1/dead?limit=3"))[1]
        assert ([letter["id"] for letter in found["dead"]], found["more"]) == (dead[:1:-1], True)
        found = (await call(http, "GET", f"{relay.url}/v1/dead?limit=5"))[1]
        assert ([letter["id"] for letter in found["dead"]], found["more"]) == (dead[::-1], False)
        monkeypatch.setattr(letters, "MAX_LOOKED_AT", 2)
        found = (await call(http, "GET", f"{relay.url}/v1/dead?limit=5"))[1]
        assert (len(found["dead"]), found["more"]) == (2, True)
