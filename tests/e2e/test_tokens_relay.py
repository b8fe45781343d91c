"""Stream tokens at the relay: who gets in, who does not, and what each gets to see."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import aiohttp
import jwt
import orjson
import pytest

from deltafan.broker.keys import partition
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script, running
from deltafan.devserver.provider.script import ToolCall
from deltafan.events import EventId, ReasoningDelta
from deltafan.llm.tools import tool
from deltafan.settings import RedisSettings, TokenSettings
from deltafan.tokens import HIDDEN
from tests.conftest import StartWorker
from tests.e2e.relay_kit import SPEC, HandWorker, Relay, running_relay, streaming, text_of

SECRET = "token-secret-" + "x" * 32
TOKENS = TokenSettings(token_keys=(f"k1={SECRET}",))
KEYS = ("default-key-1", "acme=acme-key-22")


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def cookie(token: str) -> dict[str, str]:
    return {"Cookie": f"deltafan_token={token}"}


def forged(**changes: Any) -> str:
    now = int(time.time())
    claims = {"aud": "deltafan", "tenant": "default", "scope": "read cancel", "iat": now, "exp": now + 60, "sub": "ann"}
    kept = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(kept, SECRET, algorithm="HS256", headers={"kid": "k1"})


@pytest.fixture
async def web(redis_settings: RedisSettings) -> AsyncIterator[AsyncQueue]:
    """The web app's queue, with the relay's token keys."""
    async with AsyncQueue(redis_settings, tokens=TOKENS) as queue:
        yield queue


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield http


@pytest.fixture
async def relay(queue: AsyncQueue) -> AsyncIterator[Relay]:
    async with running_relay(queue, tokens=TOKENS, api_keys=KEYS, cors_origins=("https://app.example", "*")) as relay:
        yield relay


async def get(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None, **query: str
) -> tuple[int, dict[str, Any]]:
    async with http.get(url, headers={"Accept": "application/json"} | (headers or {}), params=query) as response:
        return response.status, await response.json()


async def post(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str], **more: Any
) -> tuple[int, dict[str, Any]]:
    async with http.post(url, headers=headers, **more) as response:
        return response.status, await response.json()


async def test_enqueue_gives_back_a_token_for_that_job_and_no_other(http: aiohttp.ClientSession, relay: Relay) -> None:
    _, job = await post(http, f"{relay.url}/v1/jobs", bearer("acme-key-22"), json=SPEC)
    _, other = await post(http, f"{relay.url}/v1/jobs", bearer("acme-key-22"), json=SPEC)
    mine = bearer(job["token"])
    assert (await get(http, relay.url + job["status_url"], mine))[0] == 200
    assert (await get(http, relay.url + job["events_url"], mine))[0] == 200
    assert (await get(http, relay.url + other["status_url"], mine))[0] == 404
    assert (await get(http, relay.url + other["events_url"], mine))[0] == 404
    assert (await post(http, relay.url + other["cancel_url"], mine))[0] == 404
    status, body = await post(http, relay.url + job["cancel_url"], mine)
    assert (status, body["state"]) == (200, "cancelled")


async def test_what_a_token_does_not_cover_is_answered_as_what_never_was(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    mine = await web.enqueue(SPEC)
    others = [
        await web.enqueue(SPEC),
        await web.for_tenant("acme").enqueue(SPEC),
        await web.for_tenant("acme").enqueue(SPEC | {"subject": "ann"}),
    ]
    for token in (web.token(mine, cancel=True), web.token(subject="ann", cancel=True)):
        for path, ask in (("", get), ("/events", get), ("/cancel", post)):
            never = await ask(http, f"{relay.url}/v1/jobs/0-never{path}", bearer(token))
            assert never[0] == 404
            for job in others:
                status, body = await ask(http, f"{relay.url}/v1/jobs/{job.id}{path}", bearer(token))
                text = orjson.dumps(body).replace(job.id.encode(), b"0-never")
                assert (status, text) == (404, orjson.dumps(never[1]))


async def test_a_scope_is_a_job_a_channel_or_a_subject(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    jobs = {
        "plain": await web.enqueue(SPEC),
        "room": await web.enqueue(SPEC | {"channel": "room-7"}),
        "pusher": await web.enqueue(SPEC | {"sinks": ["pusher"], "pusher_channels": ["private-room-7"]}),
        "ann": await web.enqueue(SPEC | {"subject": "ann"}),
    }
    for token, covered in (
        (web.token(jobs["plain"]), {"plain"}),
        (jobs["plain"].token(), {"plain"}),
        (web.token([jobs["plain"], jobs["ann"].id]), {"plain", "ann"}),
        (web.token(channels=["room-*"]), {"room"}),
        (web.token(channels=["*room-7"]), {"room", "pusher"}),
        (web.token(subject="ann"), {"ann"}),
        (web.token(jobs["plain"], channels=["private-*"], subject="ann"), {"plain", "pusher", "ann"}),
    ):
        found = {
            name
            for name, job in jobs.items()
            if (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer(token)))[0] == 200
        }
        assert found == covered


async def test_no_pattern_covers_a_job_by_another_tenants_channel(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    job = await web.enqueue(SPEC | {"channel": "acme@room"})  # past the relay, which would have refused it
    assert (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer(web.token(channels=["*"]))))[0] == 404
    body = SPEC | {"sinks": ["pusher"], "channel": "acme@room", "pusher_channels": ["private-acme@x", "private-mine"]}
    status, said = await post(http, f"{relay.url}/v1/jobs", bearer("default-key-1"), json=body)
    assert status == 422
    assert [field["field"] for field in said["error"]["fields"]] == ["channel", "pusher_channels[0]"]
    assert (await post(http, f"{relay.url}/v1/jobs", bearer("acme-key-22"), json=SPEC | {"channel": "acme@room"}))[
        0
    ] == 202


async def test_a_token_reads_or_cancels_what_it_says_and_does_nothing_else(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    job = await web.enqueue(SPEC)
    url = f"{relay.url}/v1/jobs/{job.id}"
    everything = web.token(job, channels=["*"], subject="ann", cancel=True)
    for token in (web.token(job), everything):
        for status, said in (
            await post(http, f"{relay.url}/v1/jobs", bearer(token), json=SPEC),
            await get(http, f"{relay.url}/v1/jobs", bearer(token)),
            await get(http, f"{relay.url}/v1/stats", bearer(token)),
            await get(http, f"{relay.url}/v1/dead", bearer(token)),
        ):
            assert (status, said["error"]["code"]) == (403, "forbidden")
    for target in (url, f"{relay.url}/v1/jobs/0-never"):
        assert (await post(http, f"{target}/cancel", bearer(web.token(job))))[0] == 403, "which job makes no difference"
    only_cancel = forged(sub=None, jobs=[job.id], scope="cancel")
    assert (await get(http, url, bearer(only_cancel)))[0] == 403
    assert (await post(http, f"{url}/cancel", bearer(only_cancel)))[0] == 200


async def test_a_token_comes_in_the_header_else_as_a_cookie_else_in_the_address(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    job = await web.enqueue(SPEC)
    url, good, wrong = f"{relay.url}/v1/jobs/{job.id}", web.token(job), forged(exp=1)
    for headers, query, status in (
        (bearer(good), {}, 200),
        (cookie(good), {}, 200),
        ({}, {"token": good}, 200),
        (bearer(good) | cookie(wrong), {"token": wrong}, 200),
        (bearer(wrong) | cookie(good), {"token": good}, 401),
        (cookie(wrong), {"token": good}, 401),
        (cookie(good), {"token": wrong}, 200),
        ({"Authorization": "Basic YTpi"} | cookie(good), {}, 200),
        ({}, {}, 401),
        ({}, {"token": ""}, 401),
        (cookie("default-key-1"), {}, 401),
        ({}, {"token": "default-key-1"}, 401),
    ):
        assert (await get(http, url, headers, **query))[0] == status, (headers, query)
        assert (await get(http, f"{url}/events", headers, **query))[0] == status


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (forged(exp=1), "token_expired"),
        (forged(aud="other"), "token_invalid"),
        (forged()[:-1], "token_invalid"),
        (forged(scope="admin"), "token_invalid"),
        (jwt.encode({"aud": "deltafan"}, "y" * 32, algorithm="HS256", headers={"kid": "k1"}), "token_invalid"),
        ("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.e30.", "token_invalid"),
        ("eyJ" + "A" * 7000 + ".e30.x", "token_invalid"),
        ("not-a-key-of-ours", "unauthorized"),
    ],
)
async def test_a_wrong_token_is_401_with_a_reason_that_a_program_can_read(
    http: aiohttp.ClientSession, relay: Relay, token: str, code: str
) -> None:
    for path in ("/v1/jobs/0-x", "/v1/jobs/0-x/events", "/v1/jobs", "/v1/nothing", "/pusher/nothing"):
        async with http.get(relay.url + path, headers=bearer(token)) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"], error["fields"]) == (401, code, [])
            challenge = response.headers["WWW-Authenticate"]
            assert challenge.startswith('Bearer realm="deltafan", error="invalid_token", error_description="')
            assert challenge.count('"') == 6
            assert token not in str(error) + challenge


async def test_a_cookie_changes_something_only_for_pages_that_are_known(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    for origin, status in (
        (None, 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("*", 403),
        (f"{relay.url}.evil.example", 403),
        ("https://app.example", 200),
        (relay.url, 200),
    ):
        job = await web.enqueue(SPEC)
        url, token = f"{relay.url}/v1/jobs/{job.id}/cancel", web.token(job, cancel=True)
        sent = {} if origin is None else {"Origin": origin}
        found, said = await post(http, url, cookie(token) | sent)
        assert found == status, origin
        if status == 403:
            assert "Origin" in said["error"]["message"]
            assert (await job.status()).state == "queued"
            assert (await post(http, url, bearer(token) | sent))[0] == 200, (
                "what no browser adds by itself is no danger"
            )


async def test_without_token_keys_no_token_is_taken(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    async with running_relay(queue, api_keys=KEYS) as relay:
        for headers, query in ((bearer(forged()), {}), (cookie(forged()), {}), ({}, {"token": forged()})):
            status, said = await get(http, f"{relay.url}/v1/jobs/0-x", headers, **query)
            assert (status, said["error"]["code"]) == (401, "unauthorized")
            assert "no token keys are set" in said["error"]["message"]
        _, job = await post(http, f"{relay.url}/v1/jobs", bearer("default-key-1"), json=SPEC)
        assert "token" not in job


async def test_in_the_open_mode_a_token_restricts_and_a_wrong_one_is_refused(
    web: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job, other = await web.enqueue(SPEC), await web.enqueue(SPEC)
    async with running_relay(web, tokens=TOKENS) as relay:
        assert (await get(http, f"{relay.url}/v1/jobs/{other.id}"))[0] == 200
        assert (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer(web.token(job))))[0] == 200
        assert (await get(http, f"{relay.url}/v1/jobs/{other.id}", bearer(web.token(job))))[0] == 404
        assert (await get(http, f"{relay.url}/v1/jobs", cookie(web.token(job))))[0] == 403
        for wrong in (forged(exp=1), "garbage"):
            assert (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer(wrong)))[0] == 401
        _, made = await post(http, f"{relay.url}/v1/jobs", {}, json=SPEC)
        assert (await get(http, relay.url + made["status_url"], bearer(made["token"])))[0] == 200
    async with running_relay(web) as relay:
        assert (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer("whatever")))[0] == 200


async def raw(relay: Relay, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "path",
    ["//v1/jobs/{}", "/./v1/jobs/{}", "/x/../v1/jobs/{}", "/v1/jobs/{}/", "/V1/jobs/{}", "/%76%31/jobs/{}",
     "/v1%2Fjobs%2F{}", "/v1/jobs/x/../{}", "/v1/./jobs/{}", "/healthz/../v1/jobs/{}", "/static/../v1/jobs/{}",
     "/v1/jobs/{}%00", "/v1/jobs/{};x", "/healthz%2F..%2Fv1%2Fjobs%2F{}", "http://x/v1/jobs/{}",
     "/v1/jobs/{}?x=/healthz", "/v1/jobs/{}#/healthz"],
)  # fmt: skip
async def test_no_way_of_writing_an_address_gets_past_the_keys(web: AsyncQueue, relay: Relay, path: str) -> None:
    job = await web.enqueue(SPEC)
    said = await raw(relay, f"GET {path.format(job.id)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert said[:13] in (b"HTTP/1.1 401 ", b"HTTP/1.1 404 ", b"HTTP/1.1 400 "), said
    assert b"queued" not in said


async def test_a_token_in_the_address_is_never_logged(
    web: AsyncQueue, http: aiohttp.ClientSession, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    job = await web.enqueue(SPEC)
    good, expired = web.token(job), forged(exp=1)
    url = f"{relay.url}/v1/jobs/{job.id}"
    for token in (good, expired, good[:-2]):
        await get(http, url, token=token)
        await get(http, f"{url}/events", token=token)
        await get(http, f"{relay.url}/nothing", token=token)
        await post(http, f"{relay.url}/v1/jobs", {}, params={"token": token})
        for request in (b"GET /v1/jobs?token=%b HTTP/9.9\r\n\r\n", b"G\x00T /v1/jobs?token=%b HTTP/1.1\r\n\r\n",
                        b"GET /v1/jobs?token=%b HTTP/1.1\r\nContent-Length: x\r\n\r\n"):  # fmt: skip
            said = await raw(relay, request % token.encode())
            assert token[:40].encode() not in said
    lines = [record.getMessage() + str(record.exc_text or "") for record in caplog.records]
    assert any(f"GET /v1/jobs/{job.id} 200" in text for text in lines), "requests are logged"
    for token in (good, expired):
        assert not [text for text in lines if token[-40:-2] in text or "token=" in text]


async def test_a_stream_ends_in_good_order_when_its_token_expires_and_goes_on_with_a_new_one(
    web: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await web.enqueue(SPEC)
    work = await worker.take()
    await work.say("a")
    async with running_relay(web, tokens=TOKENS, api_keys=KEYS, heartbeat=0.4) as relay:
        short, long = bearer(web.token(job, ttl=2)), bearer(web.token(job))
        async with (
            streaming(http, relay.url, job.id, **short) as stream,
            streaming(http, relay.url, job.id, **long) as kept,
        ):
            seen = await stream.until("1-1")
            seen += await stream.rest()
            assert [event.event for event in seen] == ["meta", "text_delta"], "a clean end, and no done"
            await work.say("b")
            await kept.until("1-2")
        status, said = await get(http, f"{relay.url}/v1/jobs/{job.id}/events", short)
        assert (status, said["error"]["code"]) == (401, "token_expired")
        await work.finish()
        async with streaming(http, relay.url, job.id, after="1-1", **bearer(job.token())) as stream:
            assert text_of(seen + await stream.rest()) == "ab"


def look_up(city: str) -> dict[str, str]:
    """Look something up."""
    return {"found": f"the result for {city}"}


@pytest.mark.parametrize("hide", [(), *((part,) for part in HIDDEN), HIDDEN], ids=lambda hide: "+".join(hide) or "none")
async def test_what_a_token_hides_is_nowhere_in_streams_and_snapshots_and_everything_else_is(
    web: AsyncQueue, http: aiohttp.ClientSession, start_worker: StartWorker, hide: tuple[Any, ...]
) -> None:
    reasoning, argument, result = "the reasoning of the model", "Paris-on-Rhine", "the result for Paris-on-Rhine"
    script = Script(
        reasoning=reasoning,
        tool_calls=(ToolCall("look_up", orjson.dumps({"city": argument}).decode()),),
        chunk_size=6,
        rate=300,
    )
    async with running(script) as provider, running_relay(web, tokens=TOKENS, api_keys=KEYS) as relay:
        await start_worker(provider, services={"tools": {"look_up": tool(look_up)}})
        job = await web.enqueue(model="m", prompt="x", tools=["look_up"])
        token = bearer(job.token(hide=hide))
        async with streaming(http, relay.url, job.id, **token) as stream:
            live = [orjson.loads(event.data) for event in await stream.rest()]
            wire = stream.raw
        async with streaming(http, relay.url, job.id, **token) as stream:
            replay = [orjson.loads(event.data) for event in await stream.rest()]
            wire += stream.raw
        async with http.get(
            f"{relay.url}/v1/jobs/{job.id}/events", headers=token | {"Accept": "application/json"}
        ) as response:
            wire += await response.read()
            snapshot = (await response.json())["events"]
        async with http.get(f"{relay.url}/v1/jobs/{job.id}", headers=token) as response:
            wire += await response.read()

        said = {"reasoning_delta": ("reasoning", reasoning), "tool_call_delta": ("tool_arguments", argument)}
        for events in (live, replay, snapshot):
            seqs = [
                (EventId(*map(int, e.get("first", e["id"]).split("-"))), EventId(*map(int, e["id"].split("-"))))
                for e in events
            ]
            assert seqs[0][0] == (1, 0)
            assert all(b[0] == (1, a[1].seq + 1) for a, b in pairwise(seqs)), "no gaps"
            assert events[-1]["type"] == "done"
            assert "".join(e["text"] for e in events if e["type"] == "text_delta") == (await job.result()).text
            for kind, (part, content) in said.items():
                found = [e for e in events if e["type"] == kind]
                text = "".join(e.get("text", "") + e.get("arguments", "") for e in found)
                assert found
                assert all(e.get("hidden", False) is (part in hide) for e in found)
                assert text == "" if part in hide else content in text
            (given,) = [e for e in events if e["type"] == "tool_result"]
            assert given["name"] == "look_up"
            assert given["result"] == (None if "tool_results" in hide else {"found": result})
        if "tool_results" in hide:
            assert b"the result for" not in wire
        if set(hide) >= {"tool_arguments", "tool_results"}:
            assert b"Rhine" not in wire


async def test_followers_of_one_job_see_each_what_their_tokens_show(
    web: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, relay: Relay
) -> None:
    job = await web.enqueue(SPEC)
    work = await worker.take()
    tokens = [job.token(), job.token(hide=["reasoning"]), job.token(hide=["tool_results"])]
    async with (
        streaming(http, relay.url, job.id, **bearer(tokens[0])) as whole,
        streaming(http, relay.url, job.id, **bearer(tokens[1])) as blanked,
        streaming(http, relay.url, job.id, **bearer(tokens[2])) as also_whole,
    ):
        for stream in (whole, blanked, also_whole):
            await stream.until("1-0")
        await work.say(ReasoningDelta(text="hush"), "Hello")
        for stream, seen in ((whole, True), (blanked, False), (also_whole, True)):
            await stream.until("1-2")
            assert (b"hush" in stream.raw) is seen
            assert b"Hello" in stream.raw


async def test_a_tokens_holder_is_counted_by_subject_whatever_the_token(
    web: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await web.enqueue(SPEC | {"subject": "ann"})
    async with running_relay(web, tokens=TOKENS, api_keys=KEYS, key_rate=0.001) as relay:
        for token, status in (
            (web.token(subject="ann"), 200),
            (web.token(job, subject="ann", cancel=True), 429),
            (web.token(job), 200),
            (web.token(job, ttl=5), 429),
        ):
            assert (await get(http, f"{relay.url}/v1/jobs/{job.id}", bearer(token)))[0] == status


async def test_who_holds_a_token_is_not_told_why_a_sink_is_behind(
    web: AsyncQueue, relay: Relay, http: aiohttp.ClientSession
) -> None:
    """The reason may name addresses and channels of ours."""
    job = await web.enqueue(SPEC)
    standing = {"mine": {"state": "behind", "last_id": "1-3", "error": "OSError: 10.0.3.7:6379"}}
    await web.connections.commands.hset(partition(job.id).job(job.id), "sinks", orjson.dumps(standing))
    url = f"{relay.url}/v1/jobs/{job.id}"
    _, seen = await get(http, url, bearer(web.token(job)))
    assert seen["sinks"] == {"mine": {"state": "behind", "last_id": "1-3"}}
    _, seen = await get(http, url, bearer("default-key-1"))
    assert seen["sinks"] == standing


async def test_a_stale_cookie_of_another_program_does_not_close_the_page(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    """Programs on one machine share the cookies of localhost, whatever their port."""
    async with running_relay(queue, tokens=TOKENS) as relay:
        for path in ("/", "/jobs", "/client.js", "/schema/event.json"):
            async with http.get(relay.url + path, headers=cookie("nonsense")) as response:
                assert response.status == 200
        status, _ = await get(http, f"{relay.url}/v1/jobs", cookie("nonsense"))
        assert status == 401


async def test_the_log_tells_an_operator_why_somebody_was_refused(
    web: AsyncQueue, relay: Relay, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deltafan.relay.access")
    url = f"{relay.url}/v1/jobs/0-x"
    await get(http, url, bearer(web.token(subject="ann")[:-2] + "AA"))
    await get(http, url, bearer(forged(exp=int(time.time()) - 60)))
    await get(http, url)
    lines = [record.getMessage() for record in caplog.records if record.name == "deltafan.relay.access"]
    assert [line.rpartition("code=")[2] for line in lines] == ["token_invalid", "token_expired", "unauthorized"]
