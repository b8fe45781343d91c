"""Who may use the relay: keys and tenants, the open mode's guards, pages of other origins."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import aiohttp
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.errors import ConfigurationError
from deltafan.settings import TokenSettings
from deltafan.tokens import TokenKeys
from tests.e2e.relay_kit import SPEC, running_relay

KEYS = ("default-key-1", "acme=acme-key-22", f"hashed=sha256:{hashlib.sha256(b'hashed-key-3').hexdigest()}")


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
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
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


async def test_a_star_lets_every_origin_read_but_without_its_cookies(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    headers = {"Origin": "https://any.example"}
    async with (
        running_relay(queue, cors_origins=("*",)) as relay,
        http.get(f"{relay.url}/v1/jobs", headers=headers) as response,
    ):
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    ("rights", "allowed"),
    [
        ("enqueue", {"enqueue"}),
        ("read", {"status", "events", "list"}),
        ("cancel", {"cancel"}),
        ("admin", set()),
        ("enqueue+read+cancel", {"enqueue", "status", "events", "list", "cancel"}),
    ],
)
async def test_a_key_may_do_what_its_rights_say_and_for_the_rest_it_is_403(
    queue: AsyncQueue, http: aiohttp.ClientSession, rights: str, allowed: set[str]
) -> None:
    job = await queue.enqueue(SPEC)
    await job.cancel()
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "enqueue": ("POST", "/v1/jobs", {"json": SPEC}),
        "status": ("GET", f"/v1/jobs/{job.id}", {}),
        "events": ("GET", f"/v1/jobs/{job.id}/events", {}),
        "list": ("GET", "/v1/jobs", {}),
        "cancel": ("POST", f"/v1/jobs/{job.id}/cancel", {}),
    }
    async with running_relay(queue, api_keys=(f"default:{rights}=the-key-1",)) as relay:
        for name, (method, path, more) in asked.items():
            async with http.request(method, relay.url + path, headers=bearer("the-key-1"), **more) as response:
                assert (response.status < 300) is (name in allowed), name
                if name not in allowed:
                    assert response.status == 403
                    assert (await response.json())["error"]["code"] == "forbidden"
                    assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]
        unknown = f"{relay.url}/v1/jobs/0-unknown"
        async with http.get(unknown, headers=bearer("the-key-1")) as response:
            assert response.status == (404 if "status" in allowed else 403), (
                "without the right, nothing is told of a job"
            )


async def test_every_answer_carries_the_headers_that_keep_a_browser_safe(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        for path in (
            "/",
            "/healthz",
            "/nothing",
            "/v1/jobs",
            "/v1/jobs/0-x",
            f"/v1/jobs/{job.id}/events",
            "/client.js",
        ):
            async with http.get(relay.url + path) as response:
                headers = response.headers
                assert headers["X-Content-Type-Options"] == "nosniff", path
                assert headers["Referrer-Policy"] == "no-referrer", path
                assert "default-src 'none'" in headers["Content-Security-Policy"], path
                assert headers["Cross-Origin-Resource-Policy"] == (
                    "cross-origin" if path == "/client.js" else "same-origin"
                )


async def test_a_page_of_any_origin_may_load_the_client_and_need_not_load_it_again(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    origin = {"Origin": "https://any.example"}
    async with running_relay(queue, api_keys=KEYS, cors_origins=("https://app.example",)) as relay:
        for path in ("/client.js", "/deltafan.js", "/react.js"):
            async with http.get(relay.url + path, headers=origin) as response:
                assert response.status == 200
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
                assert "export" in await response.text()
                tag = response.headers["ETag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                async with http.get(relay.url + path, headers=origin | {"If-None-Match": known}) as response:
                    assert (response.status, await response.read()) == (304, b"")
                    assert response.headers["Access-Control-Allow-Origin"] == "*"
            async with http.get(relay.url + path, headers={"If-None-Match": '"other"'}) as response:
                assert response.status == 200


async def test_an_address_that_asks_too_often_waits_and_the_probes_never_do(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, api_keys=KEYS, address_rate=0.001, trusted_proxies=("127.0.0.1",)) as relay:
        for address, status in (("203.0.113.1", 200), ("203.0.113.1", 429), ("203.0.113.2", 200)):
            headers = bearer("default-key-1") | {"X-Forwarded-For": f"198.51.100.9, {address}"}
            async with http.get(f"{relay.url}/v1/jobs", headers=headers) as response:
                assert response.status == status
                if status == 429:
                    assert (await response.json())["error"]["code"] == "rate_limited"
                    assert 900 <= int(response.headers["Retry-After"]) <= 1000
        for _ in range(3):
            async with http.get(f"{relay.url}/healthz", headers={"X-Forwarded-For": "203.0.113.1"}) as response:
                assert response.status == 200


async def test_a_key_that_is_used_too_often_waits_wherever_it_is_used_and_other_keys_do_not(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, api_keys=KEYS, key_rate=0.001, trusted_proxies=("127.0.0.1",)) as relay:
        for place, (key, status) in enumerate(
            (("default-key-1", 200), ("default-key-1", 429), ("acme-key-22", 200), ("default-key-1", 429))
        ):
            headers = bearer(key) | {"X-Forwarded-For": f"203.0.113.{place}"}
            async with http.get(f"{relay.url}/v1/jobs", headers=headers) as response:
                assert response.status == status


async def test_guessing_keys_is_slow_and_locks_nobody_out_who_is_in(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    tokens = TokenSettings(token_keys=(f"k=secret-{'x' * 32}",))
    keys = TokenKeys.of(tokens)
    assert keys is not None

    async def ask(credential: str) -> int:
        async with http.get(f"{relay.url}/v1/jobs/0-x", headers=bearer(credential)) as response:
            return response.status

    strong = "deltafan_" + "k" * 32
    async with running_relay(queue, tokens=tokens, api_keys=(*KEYS, strong), failure_rate=0.001) as relay:
        assert await ask("default-key-1") == 404, "this one is in use"
        guesses = [await ask(f"guess-{n:05}") for n in range(40)]
        assert guesses == [401] * 20 + [429] * 20
        assert await ask("acme-key-22") == 429, "a right guess is not told from a wrong one"
        assert await ask("default-key-1") == 404
        assert await ask(keys.mint("default", jobs=["0-x"])) == 404
        assert await ask(strong) == 404, "nobody guesses this one"
        for _ in range(30):
            assert await ask(keys.mint("default", jobs=["0-x"])[:-2] + "AA") == 401, "nor a token"


async def test_one_key_may_have_so_many_streams_and_others_have_theirs(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, api_keys=KEYS, max_followers_per_key=1) as relay:
        jobs = {}
        for key in ("default-key-1", "acme-key-22"):
            async with http.post(f"{relay.url}/v1/jobs", json=SPEC, headers=bearer(key)) as response:
                jobs[key] = relay.url + (await response.json())["events_url"]
        async with http.get(jobs["default-key-1"], headers=bearer("default-key-1")) as first:
            assert first.status == 200
            async with http.get(jobs["default-key-1"], headers=bearer("default-key-1")) as second:
                assert second.status == 429
                assert (await second.json())["error"]["code"] == "too_many_followers"
            async with http.get(jobs["acme-key-22"], headers=bearer("acme-key-22")) as other:
                assert other.status == 200
