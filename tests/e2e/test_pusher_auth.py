"""`POST /pusher/auth`: who may subscribe to what, and that the signatures are those that Pusher documents."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.relay.pusher_auth import sign
from deltafan.settings import PusherSettings, TokenSettings
from deltafan.tokens import TokenKeys
from tests.e2e.relay_kit import SPEC, Relay, running_relay

SECRET = "secret-of-the-app"
MASTER = base64.b64encode(bytes(range(32))).decode()
PUSHER = PusherSettings.model_validate(
    {"app_id": "4711", "key": "the-key", "secret": SECRET, "host": "127.0.0.1", "port": 6001, "tls": False}
)
ENCRYPTING = PUSHER.model_copy(
    update={"encryption_master_key": PusherSettings(encryption_master_key=MASTER).encryption_master_key}  # type: ignore[arg-type]
)
TOKENS = TokenSettings(token_keys=(f"k1=token-secret-{'x' * 32}",))
KEYS = ("default-key-1", "acme=acme-key-22", "acme:enqueue=acme-key-33")
SOCKET = "1234.5678"
FORM = "application/x-www-form-urlencoded"


def mint(tenant: str = "default", **scope: Any) -> str:
    keys = TokenKeys.of(TOKENS)
    assert keys is not None
    return keys.mint(tenant, **scope)


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


@pytest.fixture
async def relay(queue: AsyncQueue) -> AsyncIterator[Relay]:
    async with running_relay(queue, tokens=TOKENS, pusher=ENCRYPTING, api_keys=KEYS) as relay:
        yield relay


async def ask(
    http: aiohttp.ClientSession, relay: Relay, credential: str | None, channel: str, socket: str = SOCKET
) -> tuple[int, dict[str, Any]]:
    """As pusher-js does by default."""
    form = {"socket_id": socket, "channel_name": channel}
    headers = bearer(credential) if credential is not None else {}
    async with http.post(f"{relay.url}/pusher/auth", data=form, headers=headers) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json()


def signature(text: str) -> str:
    return f"the-key:{hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()}"


def test_signatures_are_those_of_pushers_documentation() -> None:
    """https://pusher.com/docs/channels/library_auth_reference/auth-signatures/ : its worked examples."""
    documented = PusherSettings.model_validate(
        {"app_id": "1", "key": "278d425bdf160c739803", "secret": "7ad3773142a6692b25b8"}
    )
    private = sign(documented, "1234.1234", "private-foobar", "10")
    assert private == {"auth": "278d425bdf160c739803:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"}
    presence = sign(documented, "1234.1234", "presence-foobar", "10")
    data = presence["channel_data"]
    expected = hmac.new(b"7ad3773142a6692b25b8", f"1234.1234:presence-foobar:{data}".encode(), hashlib.sha256)
    assert orjson.loads(data) == {"user_id": "10", "user_info": {}}
    assert presence["auth"] == f"278d425bdf160c739803:{expected.hexdigest()}"


async def test_a_job_of_the_holder_is_signed_and_another_is_403_as_is_one_that_never_was(
    queue: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    mine = await queue.enqueue(SPEC | {"sinks": ["pusher"], "subject": "ann"})
    other = await queue.enqueue(SPEC | {"sinks": ["pusher"], "subject": "bob"})
    channel = f"private-job-{mine.id}"
    for scope in ({"jobs": [mine.id]}, {"subject": "ann"}, {"channels": ["private-job-*"]}, {"channels": [channel]}):
        assert await ask(http, relay, mint(**scope), channel) == (200, {"auth": signature(f"{SOCKET}:{channel}")})
    said = [
        await ask(http, relay, mint(jobs=[mine.id]), f"private-job-{other.id}"),
        await ask(http, relay, mint(jobs=[mine.id]), "private-job-0-never"),
        await ask(http, relay, mint(jobs=["0-never"]), "private-job-0-never"),
        await ask(http, relay, mint(subject="ann"), f"private-job-{other.id}"),
        await ask(http, relay, mint(jobs=[mine.id]), "private-room"),
        await ask(http, relay, mint("acme", jobs=[mine.id]), channel),
        await ask(http, relay, mint("acme", channels=["*"]), channel),
        await ask(http, relay, "acme-key-22", channel),
    ]
    assert {status for status, _ in said} == {403}
    assert len({orjson.dumps(body) for _, body in said}) == 1, "nothing tells one refusal from another"
    assert said[0][1]["error"]["code"] == "forbidden"


async def test_the_channels_that_a_listed_job_names_are_its_holders_and_others_are_not(
    queue: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    names = ["private-room-7", "presence-room-7", "private-encrypted-room-7"]
    job = await queue.enqueue(SPEC | {"sinks": ["pusher"], "pusher_channels": names})
    token = mint(jobs=[job.id])
    for name in names:
        assert (await ask(http, relay, token, name))[0] == 200
    for name in ("private-room-8", f"private-job-{job.id}x", "private-room-77"):
        assert (await ask(http, relay, token, name))[0] == 403


async def test_a_presence_channel_shows_the_subject_and_without_one_a_name_that_stays(
    http: aiohttp.ClientSession, relay: Relay
) -> None:
    async def user(credential: str) -> str:
        status, body = await ask(http, relay, credential, "presence-room")
        assert status == 200
        data = body["channel_data"]
        assert body["auth"] == signature(f"{SOCKET}:presence-room:{data}")
        shown = orjson.loads(data)
        assert shown["user_info"] == {}
        assert 1 <= len(shown["user_id"]) <= 128
        return str(shown["user_id"])

    room = ["presence-room"]
    assert await user(mint(channels=room, subject="ann@example.org")) == "ann@example.org"
    unfit = [await user(mint(channels=room, subject=subject)) for subject in ("Ann Lee", "x" * 129, "änn")]
    assert len(set(unfit)) == 3
    assert all(user_id.startswith("u-") for user_id in unfit)
    assert await user(mint(channels=room)) == await user(mint(channels=room, ttl=7))
    assert await user(mint(channels=room)) != await user("default-key-1")


async def test_an_encrypted_channel_comes_with_its_key_and_without_a_master_key_with_a_reason(
    queue: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    name = "private-encrypted-room"
    status, body = await ask(http, relay, mint(channels=[name]), name)
    secret = hashlib.sha256(name.encode() + bytes(range(32))).digest()
    assert (status, body["auth"]) == (200, signature(f"{SOCKET}:{name}"))
    assert base64.b64decode(body["shared_secret"]) == secret
    async with running_relay(queue, tokens=TOKENS, pusher=PUSHER, api_keys=KEYS) as other:
        status, body = await ask(http, other, mint(channels=[name]), name)
        assert status == 404
        assert "PUSHER_ENCRYPTION_MASTER_KEY" in body["error"]["message"]


@pytest.mark.parametrize("pattern", ["*", "private-*", "private-acme@*", "*acme*", "*@*"])
async def test_no_pattern_reaches_into_another_tenant(http: aiohttp.ClientSession, relay: Relay, pattern: str) -> None:
    token = mint("default", channels=[pattern])
    for channel in (
        "private-acme@room",
        "presence-acme@room",
        "private-encrypted-acme@room",
        "private-cache-acme@room",
    ):
        assert (await ask(http, relay, token, channel))[0] == 403
    acme = mint("acme", channels=[pattern])
    for channel in ("private-room", "private-default@room", "private-x-acme@room", "private-private-acme@room"):
        assert (await ask(http, relay, acme, channel))[0] == 403


async def test_a_tenant_reaches_its_own(queue: AsyncQueue, http: aiohttp.ClientSession, relay: Relay) -> None:
    job = await queue.for_tenant("acme").enqueue(SPEC | {"sinks": ["pusher"]})
    for credential in (mint("acme", channels=["private-job-*"]), mint("acme", jobs=[job.id]), "acme-key-22"):
        assert (await ask(http, relay, credential, f"private-job-{job.id}"))[0] == 200
    assert (await ask(http, relay, mint("acme", channels=["private-acme@*"]), "private-acme@room"))[0] == 200
    assert (await ask(http, relay, "acme-key-22", "private-acme@room"))[0] == 200
    assert (await ask(http, relay, "default-key-1", "private-room"))[0] == 200
    assert (await ask(http, relay, "default-key-1", "private-acme@room"))[0] == 403


async def test_who_may_not_read_or_has_something_hidden_gets_no_signature(
    http: aiohttp.ClientSession, relay: Relay
) -> None:
    assert (await ask(http, relay, "acme-key-33", "private-acme@room"))[0] == 403
    status, body = await ask(http, relay, mint(channels=["*"], hide=["reasoning"]), "private-room")
    assert status == 403
    assert "hides" in body["error"]["message"]
    for credential, code in ((None, "unauthorized"), ("wrong-key", "unauthorized"), ("eyJ.a.b", "token_invalid")):
        status, body = await ask(http, relay, credential, "private-room")
        assert (status, body["error"]["code"]) == (401, code)


@pytest.mark.parametrize(
    ("socket", "channel", "field"),
    [
        ("", "private-a", "socket_id"), ("1", "private-a", "socket_id"), ("1.2:x", "private-a", "socket_id"),
        ("1.2\n", "private-a", "socket_id"), ("١.٢", "private-a", "socket_id"),
        ("1.2:private-a:{}", "private-a", "socket_id"), (f"{'1' * 21}.2", "private-a", "socket_id"),
        (SOCKET, "", "channel_name"), (SOCKET, "private-", "channel_name"), (SOCKET, "room", "channel_name"),
        (SOCKET, "private-a:b", "channel_name"), (SOCKET, "private-ä", "channel_name"),
        (SOCKET, "private-a\n", "channel_name"), (SOCKET, "private-" + "x" * 157, "channel_name"),
        (SOCKET, "#server-to-user-1", "channel_name"), (SOCKET, "cache-a", "channel_name"),
    ],
)  # fmt: skip
async def test_what_is_no_socket_or_no_channel_is_named(
    http: aiohttp.ClientSession, relay: Relay, socket: str, channel: str, field: str
) -> None:
    status, body = await ask(http, relay, "default-key-1", channel, socket)
    assert (status, [f["field"] for f in body["error"]["fields"]]) == (422, [field])


@pytest.mark.parametrize(
    ("kind", "body", "status", "field"),
    [
        ("application/json", b'{"socket_id":"1.2","channel_name":"private-a"}', 200, None),
        ("application/json; charset=utf-8", b'{"socket_id":"1.2","channel_name":"private-a","more":[1]}', 200, None),
        ("application/json", b'{"socket_id":"1.2","channel_name":["private-a"]}', 422, "channel_name"),
        ("application/json", b'{"socket_id":1.2,"channel_name":"private-a"}', 422, "socket_id"),
        ("application/json", b'["1.2","private-a"]', 422, ""),
        ("application/json", b"{", 400, None),
        (FORM, b"socket_id=1.2&channel_name=private-a&x=1", 200, None),
        (FORM, b"socket_id=1.2&channel_name=private-a&channel_name=private-b", 422, "channel_name"),
        (FORM, b"socket_id=1.2&channel_name[]=private-a", 422, "channel_name"),
        (FORM, b"socket_id=1.2&channel_name=%ff", 400, None),
        (FORM, b"&".join(b"a=%d" % n for n in range(30)), 400, None),
        (FORM, b"a=" + b"x" * 5000, 413, None),
        ("text/plain", b"socket_id=1.2&channel_name=private-a", 415, None),
    ],
)  # fmt: skip
async def test_a_form_or_json_and_one_channel_at_a_time(
    http: aiohttp.ClientSession, relay: Relay, kind: str, body: bytes, status: int, field: str | None
) -> None:
    headers = bearer("default-key-1") | {"Content-Type": kind}
    async with http.post(f"{relay.url}/pusher/auth", data=body, headers=headers) as response:
        said = await response.json()
        assert response.status == status, said
    if field is not None:
        assert [f["field"] for f in said["error"]["fields"]] == [field]


async def test_a_body_that_does_not_say_its_size_is_bounded_too(http: aiohttp.ClientSession, relay: Relay) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    headers = bearer("default-key-1") | {"Content-Type": "application/json"}
    async with http.post(f"{relay.url}/pusher/auth", data=pieces(), headers=headers) as response:
        assert response.status == 413


async def test_without_pusher_it_is_404_with_the_reason(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    async with running_relay(queue) as relay:
        status, body = await ask(http, relay, None, "private-a")
        assert status == 404
        assert "PUSHER_APP_ID" in body["error"]["message"]


async def test_an_open_relay_signs_for_anybody_and_a_token_restricts_there_too(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with running_relay(queue, tokens=TOKENS, pusher=PUSHER) as relay:
        assert (await ask(http, relay, None, "private-room"))[0] == 200
        assert (await ask(http, relay, mint(channels=["private-x"]), "private-room"))[0] == 403
        job = await queue.enqueue(SPEC | {"sinks": ["pusher"]})
        assert (await ask(http, relay, None, f"private-job-{job.id}"))[0] == 200


async def test_enqueue_and_status_say_where_to_connect_and_never_a_secret(
    queue: AsyncQueue, http: aiohttp.ClientSession, relay: Relay
) -> None:
    spec = SPEC | {"sinks": ["pusher"]}
    async with http.post(f"{relay.url}/v1/jobs", json=spec, headers=bearer("default-key-1")) as response:
        text = await response.text()
    assert SECRET not in text
    assert MASTER not in text
    job = orjson.loads(text)
    channel = f"private-job-{job['id']}"
    where = {"key": "the-key", "cluster": None, "host": "127.0.0.1", "port": 6001, "tls": False, "channels": [channel],
             "auth_url": "/pusher/auth"}  # fmt: skip
    assert job["pusher"] == where
    assert (await ask(http, relay, job["token"], channel))[0] == 200
    async with http.get(relay.url + job["status_url"], headers=bearer(job["token"])) as response:
        status = await response.json()
    assert status["pusher"] == where
    assert "token" not in status
    hiding = mint(jobs=[job["id"]], hide=["reasoning"])
    async with http.get(relay.url + job["status_url"], headers=bearer(hiding)) as response:
        text = await response.text()
    assert "pusher" not in orjson.loads(text)
    assert channel not in text
    async with http.post(f"{relay.url}/v1/jobs", json=SPEC, headers=bearer("default-key-1")) as response:
        assert "pusher" not in await response.json()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"cluster": "eu"}, {"cluster": "eu", "host": None, "port": None, "tls": True}),
        ({}, {"cluster": "mt1", "host": None, "port": None, "tls": True}),
        ({"host": "p.example", "cluster": "eu"}, {"cluster": None, "host": "p.example", "port": 443, "tls": True}),
        ({"host": "p.example", "tls": False}, {"cluster": None, "host": "p.example", "port": 80, "tls": False}),
    ],
)
async def test_a_browser_is_told_a_cluster_or_a_host(
    queue: AsyncQueue, http: aiohttp.ClientSession, settings: dict[str, Any], where: dict[str, Any]
) -> None:
    pusher = PusherSettings.model_validate({"app_id": "1", "key": "k", "secret": "s"} | settings)
    spec = SPEC | {"sinks": ["pusher"], "channel": "public-room"}
    async with running_relay(queue, pusher=pusher) as relay, http.post(f"{relay.url}/v1/jobs", json=spec) as response:
        told = (await response.json())["pusher"]
    assert told == where | {"key": "k", "channels": ["public-room"], "auth_url": "/pusher/auth"}
