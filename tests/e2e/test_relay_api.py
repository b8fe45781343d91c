"""The relay's endpoints but the streams: enqueue, status, cancel, list, health, and every way of asking wrongly."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.errors import ConfigurationError
from deltafan.settings import JobLimits, RedisSettings
from tests.e2e.relay_kit import (
    SPEC,
    HandWorker,
    Relay,
    running_relay,
    streaming,
)


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[AsyncQueue]:
    async with AsyncQueue(redis_settings, limits=JobLimits(max_bytes=4096, max_queue=3)) as queue:
        yield queue


@pytest.fixture
async def relay(queue: AsyncQueue) -> AsyncIterator[Relay]:
    async with running_relay(queue) as relay:
        yield relay


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The error, after a check of its shape."""
    assert response.content_type == "application/json"
    body = await response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "fields"]
    assert all(list(field) == ["field", "message"] for field in body["error"]["fields"])
    assert "Traceback" not in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


async def raw(relay: Relay, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes that no client library would, and read status and error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), orjson.loads(body)["error"]


async def test_a_post_enqueues_and_says_where_the_job_is(
    queue: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, worker: HandWorker
) -> None:
    async with http.post(f"{relay.url}/v1/jobs", json=SPEC | {"metadata": {"a": 1}}) as response:
        body = await response.json()
        assert response.status == 202
        assert response.headers["Location"] == body["status_url"]
    assert body == {
        "id": body["id"],
        "state": "queued",
        "channel": queue.job(body["id"]).channel,
        "events_url": f"/v1/jobs/{body['id']}/events",
        "status_url": f"/v1/jobs/{body['id']}",
        "cancel_url": f"/v1/jobs/{body['id']}/cancel",
    }
    work = await worker.take()
    assert work.id == body["id"]
    await work.say("Hi")
    await work.finish()
    async with http.get(relay.url + body["status_url"]) as response:
        status = await response.json()
        assert response.headers["Cache-Control"] == "no-store"
    assert (status["state"], status["attempt"], status["last_id"]) == ("done", 1, "1-2")
    assert status["metadata"] == {"a": 1}
    assert status["events_url"] == body["events_url"]
    assert "tenant" not in status


async def test_a_channel_of_ones_own_and_a_delay_show_in_the_answer(relay: Relay, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{relay.url}/v1/jobs", json=SPEC | {"channel": "mine", "delay": 60}) as response:
        body = await response.json()
    assert (body["channel"], body["state"]) == ("mine", "delayed")


async def test_an_idempotency_key_gives_the_first_job_again_and_refuses_another(
    relay: Relay, http: aiohttp.ClientSession, worker: HandWorker
) -> None:
    url, headers = f"{relay.url}/v1/jobs", {"Idempotency-Key": "k"}
    async with http.post(url, json=SPEC, headers=headers) as response:
        first = await response.json()
    await worker.take()
    async with http.post(url, json=SPEC | {"idempotency_key": "k"}) as response:
        assert await response.json() == first | {"state": "running"}
    async with http.post(url, json=SPEC | {"prompt": "other"}, headers=headers) as response:
        assert (response.status, (await error_of(response))["code"]) == (409, "conflict")
    async with http.post(url, json=SPEC | {"idempotency_key": "j"}, headers=headers) as response:
        assert response.status == 422
        assert (await error_of(response))["fields"][0]["field"] == "idempotency_key"


async def test_an_idempotency_key_whose_job_is_forgotten_is_a_conflict_that_says_so(
    queue: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC, idempotency_key="k")
    work = await worker.take()
    await work.finish()
    await queue.connections.commands.delete(work.claim.keys.job(job.id))
    async with http.post(f"{relay.url}/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k"}) as response:
        assert (response.status, (await error_of(response))["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "status", "code", "fields"),
    [
        (b"{", 400, "invalid_json", []),
        (b"\xff", 400, "invalid_json", []),
        (b"", 400, "invalid_json", []),
        (b"[" * 2000, 400, "invalid_json", []),
        (b"[]", 422, "invalid", [""]),
        (b"{}", 422, "invalid", ["model"]),
        (b'{"model":"m"}', 422, "invalid", [""]),
        (b'{"model":"m","prompt":"p","modle":1}', 422, "invalid", ["modle"]),
        (b'{"model":"m","messages":[{"role":"elf","content":"x"}]}', 422, "invalid", ["messages[0].role"]),
        (b'{"model":"m\\u0000","prompt":"p"}', 422, "invalid", ["model"]),
        (b'{"model":"m","prompt":"' + b"p" * 5000 + b'"}', 413, "too_large", []),
    ],
)
async def test_a_wrong_body_is_refused_with_the_fields_that_are_wrong(
    relay: Relay, http: aiohttp.ClientSession, body: bytes, status: int, code: str, fields: list[str]
) -> None:
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{relay.url}/v1/jobs", data=body, headers=headers) as response:
        error = await error_of(response)
    assert (response.status, error["code"], [f["field"] for f in error["fields"]]) == (status, code, fields)


async def test_a_body_that_grows_past_the_bound_is_413_without_a_content_length(
    relay: Relay, http: aiohttp.ClientSession
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt":"'
        for _ in range(100):
            yield b"x" * 100

    headers = {"Content-Type": "application/json"}
    async with http.post(f"{relay.url}/v1/jobs", data=pieces(), headers=headers) as response:
        assert (response.status, (await error_of(response))["code"]) == (413, "too_large")


async def test_a_compressed_body_is_415_and_never_unpacked(
    relay: Relay, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    for encoding, body in (("gzip", gzip.compress(b'{"prompt":"' + b"x" * 1_000_000)), ("deflate", b"not deflate")):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        async with http.post(f"{relay.url}/v1/jobs", data=body, headers=headers) as response:
            assert response.status == 415
            assert "without Content-Encoding" in (await error_of(response))["message"]
        async with http.post(f"{relay.url}/nothing", data=body, headers=headers) as response:
            assert response.status == 404
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_that_is_not_declared_as_json_is_415(
    relay: Relay, http: aiohttp.ClientSession, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    async with http.post(f"{relay.url}/v1/jobs", data=orjson.dumps(SPEC), headers=headers) as response:
        assert (response.status, (await error_of(response))["code"]) == (415, "unsupported_media_type")


async def test_a_full_queue_is_503_with_a_time_to_come_back(relay: Relay, http: aiohttp.ClientSession) -> None:
    for _ in range(3):
        async with http.post(f"{relay.url}/v1/jobs", json=SPEC) as response:
            assert response.status == 202
    async with http.post(f"{relay.url}/v1/jobs", json=SPEC) as response:
        assert (response.status, (await error_of(response))["code"]) == (503, "queue_full")
        assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    "job_id", ["0-nosuchjob", "nonsense", "%00", "0-" + "a" * 151, "%E2%98%83", "0-a%0d%0aX: y", "..%2f..%2fetc"]
)
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel")])
async def test_an_unknown_or_malformed_id_is_404(
    relay: Relay, http: aiohttp.ClientSession, job_id: str, method: str, rest: str
) -> None:
    url = aiohttp.client.URL(f"{relay.url}/v1/jobs/{job_id.replace(' ', '%20')}{rest}", encoded=True)
    async with http.request(method, url) as response:
        assert (response.status, (await error_of(response))["code"]) == (404, "not_found")


async def test_cancelling_a_waiting_job_ends_it_and_a_running_one_is_asked_to_end(
    queue: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, worker: HandWorker
) -> None:
    running = await queue.enqueue(SPEC)
    work = await worker.take()
    waiting = await queue.enqueue(SPEC)
    async with http.post(f"{relay.url}/v1/jobs/{waiting.id}/cancel") as response:
        body = await response.json()
        assert (response.status, body["state"], body["cancelled"]) == (200, "cancelled", True)
    async with streaming(http, relay.url, waiting.id) as stream:
        assert orjson.loads((await stream.rest())[-1].data)["finish_reason"] == "cancelled"
    async with http.post(f"{relay.url}/v1/jobs/{running.id}/cancel") as response:
        body = await response.json()
        assert (response.status, body["state"], body["cancelled"]) == (202, "cancelling", True)
    await work.finish("cancelled", "cancelled")
    async with http.post(f"{relay.url}/v1/jobs/{running.id}/cancel") as response:
        body = await response.json()
        assert (response.status, body["state"], body["cancelled"]) == (200, "cancelled", True)


async def test_jobs_are_listed_newest_first_by_pages_and_by_state(
    queue: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, worker: HandWorker
) -> None:
    ids = [(await queue.enqueue(SPEC)).id for _ in range(3)]
    work = await worker.take()
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        async with http.get(f"{relay.url}/v1/jobs", params=params) as response:
            page = await response.json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)
    assert [job[: job.index("-") + 12] for job in seen] == sorted((i[: i.index("-") + 12] for i in ids), reverse=True)
    async with http.get(f"{relay.url}/v1/jobs?state=running") as response:
        assert [job["id"] for job in (await response.json())["jobs"]] == [work.id]


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=501", "limit"), ("limit=x", "limit"), ("limit=%00", "limit"), ("limit=-1", "limit"),
     ("limit=99999999999999999999", "limit"), ("state=sleeping", "state"), ("cursor=x", "cursor")],
)  # fmt: skip
async def test_a_wrong_query_is_422_and_names_the_field(
    relay: Relay, http: aiohttp.ClientSession, query: str, field: str
) -> None:
    async with http.get(f"{relay.url}/v1/jobs?{query}") as response:
        assert (response.status, (await error_of(response))["fields"][0]["field"]) == (422, field)


async def test_unknown_addresses_and_methods_are_answered_in_the_same_shape(
    relay: Relay, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{relay.url}/v1/nothing") as response:
        assert (response.status, (await error_of(response))["code"]) == (404, "not_found")
    async with http.delete(f"{relay.url}/v1/jobs") as response:
        assert (response.status, (await error_of(response))["code"]) == (405, "method_not_allowed")
        assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))
    async with http.head(f"{relay.url}/v1/jobs/0-x/events") as response:
        assert response.status == 405


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /v1/jobs?cursor=" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA\0: b\r\n\r\n", 400, "bad_request"),
        (b"GET /%zz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, "not_found"),
    ],
)
async def test_what_is_not_http_is_refused_in_the_same_shape(
    relay: Relay, request_bytes: bytes, status: int, code: str
) -> None:
    got, error = await raw(relay, request_bytes)
    assert (got, error["code"]) == (status, code)


async def test_a_failure_of_ours_is_a_500_that_tells_nothing_of_the_inside(
    queue: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    job = await queue.enqueue(SPEC)
    await queue.connections.commands.delete(f"deltafan:{{0}}:job:{job.id}")
    await queue.connections.commands.set(f"deltafan:{{0}}:job:{job.id}", "not a hash")  # WRONGTYPE
    async with http.get(f"{relay.url}/v1/jobs/{job.id}") as response:
        error = await error_of(response)
        assert (response.status, error["code"]) == (500, "internal")
        assert "WRONGTYPE" not in error["message"]
    assert "WRONGTYPE" in caplog.text


async def test_the_access_log_has_one_line_a_request_without_the_query(
    relay: Relay, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "deltafan.relay.access"):
        async with http.get(f"{relay.url}/v1/jobs?state=queued&key=secret-in-query"):
            pass
    (line,) = [r.getMessage() for r in caplog.records if r.name == "deltafan.relay.access"]
    assert line.startswith("GET /v1/jobs 200 ")
    assert "secret" not in line


async def test_health_readiness_and_the_schema_answer_without_ado(relay: Relay, http: aiohttp.ClientSession) -> None:
    for path, body in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ready"})):
        async with http.get(relay.url + path) as response:
            assert (response.status, await response.json()) == (200, body)
    async with http.get(f"{relay.url}/schema/event.json") as response:
        assert response.status == 200
        assert "$schema" in await response.json()


async def test_the_page_and_its_files_come_under_a_strict_policy(relay: Relay, http: aiohttp.ClientSession) -> None:
    async with http.get(relay.url) as response:
        html = await response.text()
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "{{" not in html
    assert 'data-needs-key="no"' in html
    files = re.findall(r'(?:href|src)="([^"#]+)"', html)
    assert "static/page.js" in files
    for name in files:
        async with http.get(f"{relay.url}/{name.removeprefix('/')}") as response:
            assert response.status == 200, name


async def test_the_relay_says_so_when_its_port_is_taken(queue: AsyncQueue, relay: Relay) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on 127"):
        async with running_relay(queue, port=int(relay.url.rpartition(":")[2])):
            pass
