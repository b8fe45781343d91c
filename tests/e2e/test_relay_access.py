"""Who may use the relay: keys and tenants, the open mode's guards, pages of other origins."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.errors import ConfigurationError
from tests.e2e.relay_kit import SPEC, running_relay

KEYS = ("default-key-1", "acme=acme-key-22", f"hashed=sha256:{hashlib.sha256(b'hashed-key-3').hexdigest()}")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong-key-000"), bearer(""), {"Authorization": "Basic default-key-1"}, {"Authorization": "Bearer"},
     bearer("default-key-1x"), bearer("\udcff\udcfe")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/0-x", "/v1/jobs/0-x/events", "/v1/nothing"])
async def test_with_keys_every_api_address_needs_one(
    queue: AsyncQueue, http: aiohttp.ClientSession, headers: dict[str, str], path: str
) -> None:
    async with running_relay(queue, api_keys=KEYS) as relay, http.get(relay.url + path, headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert (await response.json())["error"]["code"] == "unauthorized"


async def test_the_page_and_the_probes_need_no_key_and_the_page_knows_that_the_api_does(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, api_keys=KEYS) as relay:
        for path in ("/healthz", "/readyz", "/", "/static/page.js", "/schema/event.json"):
            async with http.get(relay.url + path) as response:
                assert response.status == 200
        async with http.get(relay.url) as response:
            assert 'data-needs-key="yes"' in await response.text()


async def test_a_job_belongs_to_the_tenant_of_its_key_and_to_nobody_else(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, api_keys=KEYS) as relay:
        async with http.post(f"{relay.url}/v1/jobs", json=SPEC, headers=bearer("acme-key-22")) as response:
            job = await response.json()
        for key, status in (("acme-key-22", 200), ("default-key-1", 404), ("hashed-key-3", 404)):
            async with http.get(relay.url + job["status_url"], headers=bearer(key)) as response:
                assert response.status == status
            async with http.get(relay.url + job["events_url"], headers=bearer(key)) as response:
                assert response.status == status
            async with http.get(f"{relay.url}/v1/jobs", headers=bearer(key)) as response:
                assert [j["id"] for j in (await response.json())["jobs"]] == ([job["id"]] if status == 200 else [])
        for key, status in (("default-key-1", 404), ("hashed-key-3", 404), ("acme-key-22", 200)):
            async with http.post(relay.url + job["cancel_url"], headers=bearer(key)) as response:
                assert response.status == status


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "example.org"])
async def test_an_open_relay_refuses_to_listen_beyond_this_machine(queue: AsyncQueue, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"set DELTAFAN_API_KEYS or bind to 127\.0\.0\.1"):
        async with running_relay(queue, host=host):
            pass


async def test_with_keys_the_relay_listens_wherever_it_is_told(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    headers = {"Host": "relay.example.org"}
    async with (
        running_relay(queue, host="0.0.0.0", api_keys=KEYS) as relay,
        http.get(f"{relay.url}/healthz", headers=headers) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("app.localhost", 200), ("LOCALHOST", 200),
     ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[", 403), ("localhost@evil.example", 403)],
)  # fmt: skip
async def test_an_open_relay_answers_only_to_names_of_this_machine(
    queue: AsyncQueue, http: aiohttp.ClientSession, host: str, status: int
) -> None:
    async with running_relay(queue) as relay, http.get(f"{relay.url}/v1/jobs", headers={"Host": host}) as response:
        assert response.status == status


async def test_a_request_without_a_host_is_no_browser_and_is_served(queue: AsyncQueue) -> None:
    async with running_relay(queue) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        writer.write(b"GET /v1/jobs HTTP/1.0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 200")
        writer.close()


async def test_a_foreign_page_cannot_post_to_an_open_relay_but_its_own_and_listed_ones_can(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, cors_origins=("https://app.example",)) as relay:
        url = f"{relay.url}/v1/jobs/{job.id}/cancel"
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            (relay.url, 200),
            ("https://app.example", 200),
        ):
            async with http.post(url, headers={"Origin": origin}) as response:
                assert response.status == status


async def test_a_listed_origin_may_ask_and_read_streams_and_errors_included(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    origin = {"Origin": "https://app.example"}
    async with running_relay(queue, api_keys=KEYS, cors_origins=("https://app.example",)) as relay:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with http.options(f"{relay.url}/v1/jobs", headers=origin | asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            allowed = response.headers["Access-Control-Allow-Headers"]
            assert {"Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"} == set(allowed.split(", "))
            assert "Access-Control-Allow-Credentials" not in response.headers
        key = bearer("default-key-1")
        for path, headers, status in (
            (f"/v1/jobs/{job.id}/events", key, 200),
            ("/v1/jobs", {}, 401),
            ("/v1/jobs/0-x", key, 404),
        ):
            async with http.get(relay.url + path, headers=origin | headers) as response:
                assert response.status == status
                assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
                assert response.headers["Vary"] == "Origin"


async def test_an_unlisted_origin_is_told_nothing(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with running_relay(queue, cors_origins=("https://app.example",)) as relay:
        async with http.options(f"{relay.url}/v1/jobs", headers=headers) as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers
        async with http.get(f"{relay.url}/v1/jobs", headers=headers) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
            assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://app.example/", "app.example", "https://App.example", "https://a/b", ""])
async def test_an_origin_that_no_browser_sends_is_a_mistake_told_at_the_start(queue: AsyncQueue, origin: str) -> None:
    with pytest.raises(ConfigurationError, match="DELTAFAN_CORS_ORIGINS, entry 2"):
        async with running_relay(queue, cors_origins=("http://localhost:3000", origin)):
            pass


async def test_a_star_lets_every_origin_read(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    headers = {"Origin": "https://any.example"}
    async with (
        running_relay(queue, cors_origins=("*",)) as relay,
        http.get(f"{relay.url}/v1/jobs", headers=headers) as response,
    ):
        assert response.headers["Access-Control-Allow-Origin"] == "*"
