"""The WebSocket half of the emulator, frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from deltafan.devserver.pusher import PusherEmulator, running
from tests.contract.pusher_kit import Socket, library, socket


def error(frame: Any) -> tuple[str, object, str]:
    return frame["event"], frame["data"]["code"], frame["data"]["message"]


async def test_the_first_frame_tells_the_socket_id_in_a_string_of_json(emulator: PusherEmulator) -> None:
    async with socket(emulator, established=False) as one:
        message = orjson.loads((await one.ws.receive()).data)
    assert message["event"] == "pusher:connection_established"
    assert isinstance(message["data"], str)
    data = orjson.loads(message["data"])
    assert data["activity_timeout"] == 120
    first, _, second = data["socket_id"].partition(".")
    assert first.isdigit()
    assert second.isdigit()


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/app/another-key", {}, 4001),
        ("/app/%FF%00", {}, 4001),
        ("/somewhere/else", {}, 4005),
        ("/app", {}, 4005),
        (None, {"version": "one"}, 4006),
        (None, {"protocol": "8"}, 4007),
        (None, {"protocol": "3"}, 4007),
        (None, {"protocol": "seven"}, 4007),
        (None, {"protocol": ""}, 4008),
    ],
)
async def test_a_wrong_handshake_is_closed_with_its_code(
    emulator: PusherEmulator, path: str | None, query: dict[str, str], code: int
) -> None:
    async with socket(emulator, path, established=False, **query) as one:
        if query.get("protocol", "7") != "7":  # old protocols are told in an event as well
            assert error(await one.hear())[:2] == ("pusher:error", code)
        assert (await one.hear_close())[0] == code


async def test_more_connections_than_allowed_are_closed_with_4004() -> None:
    async with running(max_connections=1) as emulator:
        async with socket(emulator), socket(emulator, established=False) as second:
            assert (await second.hear_close())[0] == 4004
        await emulator.until(lambda e: e.connection_count == 0)
        async with socket(emulator) as third:
            await third.quiet()


async def test_a_subscription_is_confirmed_and_a_second_one_is_an_error(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        confirmed = await one.subscribe("a")
        assert confirmed == {"event": "pusher_internal:subscription_succeeded", "channel": "a", "data": {}}
        again = await one.subscribe("a")
        assert again["event"] == "pusher:subscription_error"
        assert error(await one.hear())[2] == "Existing subscription to channel a"
        assert emulator.subscription_count("a") == 1


@pytest.mark.parametrize("auth", [None, "", "dev-key", "other:{signature}", "dev-key:00", "dev-key:é", 5, {}])
@pytest.mark.parametrize("channel", ["private-a", "private-encrypted-a", "presence-a"])
async def test_without_a_right_signature_nobody_joins(emulator: PusherEmulator, channel: str, auth: object) -> None:
    async with socket(emulator) as one:
        right = library(emulator).authenticate(channel, one.socket_id, {"user_id": "1"})
        if isinstance(auth, str):
            auth = auth.format(signature=right["auth"].partition(":")[2])
        data = {"channel": channel, "auth": auth, "channel_data": right["channel_data"]}
        await one.say("pusher:subscribe", data)
        refused = await one.hear()
        assert (refused["event"], refused["channel"]) == ("pusher:subscription_error", channel)
        assert (refused["data"]["type"], refused["data"]["status"]) == ("AuthError", 401)
        assert error(await one.hear())[:2] == ("pusher:error", 4009)
        await one.say("pusher:subscribe", data | {"auth": right["auth"]})
        assert (await one.hear())["event"] == "pusher_internal:subscription_succeeded"


async def test_a_signature_is_good_for_its_socket_its_channel_and_its_data_only(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one, socket(emulator) as other:
        user = {"user_id": "1"}
        for stolen in (
            {"channel": "presence-a", **server.authenticate("presence-a", other.socket_id, user)},
            {"channel": "presence-a", **server.authenticate("presence-b", one.socket_id, user)},
            {"channel": "presence-a", **server.authenticate("presence-a", one.socket_id, user), "channel_data": "{}"},
            {"channel": "private-a", "auth": server.authenticate_user(one.socket_id, {"id": "1"})["auth"]},
        ):
            await one.say("pusher:subscribe", stolen)
            assert (await one.hear())["data"]["status"] == 401
            await one.hear()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (None, "channel_data is needed"),
        ({}, "user_id must be"),
        ({"user_id": ""}, "user_id must be"),
        ({"user_id": True}, "user_id must be"),
        ({"user_id": "u" * 129}, "user_id must be"),
        ({"user_id": "u", "user_info": "i" * 1023}, "user_info must be at most 1024 bytes"),
        (["u"], "channel_data must be a JSON object"),
    ],
)
async def test_a_member_needs_an_id_and_little_else(emulator: PusherEmulator, data: object, rule: str) -> None:
    async with socket(emulator) as one:
        refused = await one.subscribe("presence-a", library(emulator), data or None)
        if data == {}:  # which the library takes for no data
            rule = "channel_data is needed"
        assert rule in refused["data"]["error"]
    assert emulator.subscription_count("presence-a") == 0


async def test_a_presence_channel_takes_a_hundred_users(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        members = []
        for number in range(100):
            one = Socket(await session.ws_connect(f"{emulator.url}/app/{emulator.key}?protocol=7"))
            members.append(one)
            one.socket_id = (await one.hear())["data"]["socket_id"]
            joined = await one.subscribe("presence-a", server, {"user_id": number})
            assert joined["data"]["presence"]["count"] == number + 1
        async with socket(emulator) as another, socket(emulator) as same:
            refused = await another.subscribe("presence-a", server, {"user_id": 100})
            assert refused["data"]["type"] == "LimitReached"
            assert (await same.subscribe("presence-a", server, {"user_id": 99}))["data"]["presence"]["count"] == 100


async def test_leaving_without_a_word_is_told_to_the_other_members(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one:
        await one.subscribe("presence-a", server, {"user_id": "stays"})
        async with socket(emulator) as two:
            await two.subscribe("presence-a", server, {"user_id": "goes"})
            assert (await one.hear())["event"] == "pusher_internal:member_added"
        removed = await one.hear()
    assert removed == {
        "event": "pusher_internal:member_removed",
        "channel": "presence-a",
        "data": {"user_id": "goes"},
    }


async def test_a_user_is_gone_when_its_last_connection_is(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as watcher, socket(emulator) as first, socket(emulator) as second:
        await watcher.subscribe("presence-a", server, {"user_id": "watcher"})
        for one in (first, second):
            await one.subscribe("presence-a", server, {"user_id": "u"})
        assert (await watcher.hear())["event"] == "pusher_internal:member_added"
        await first.say("pusher:unsubscribe", {"channel": "presence-a"})
        await first.quiet()
        await watcher.quiet()
        await second.say("pusher:unsubscribe", {"channel": "presence-a"})
        assert (await watcher.hear())["event"] == "pusher_internal:member_removed"
        await watcher.quiet()


async def test_what_is_wrong_with_an_authorization_is_said(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        for auth, said in (
            ("00", "Auth value for private-a is invalid: should be of format 'key:signature'"),
            ("other:00", "Invalid key in subscription auth data"),
            ("dev-key:00", f"Expected HMAC SHA256 hex digest of {one.socket_id}:private-a, but got 00"),
        ):
            await one.say("pusher:subscribe", {"channel": "private-a", "auth": auth})
            assert said in (await one.hear())["data"]["error"]
            await one.hear()


async def test_a_pong_that_nobody_asked_for_is_taken_in_silence(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        await one.say("pusher:pong", {})
        await one.quiet()


async def test_a_signed_in_user_joins_presence_without_data_and_hears_only_its_own_channel(
    emulator: PusherEmulator,
) -> None:
    server = library(emulator)
    async with socket(emulator) as one:
        assert (await one.subscribe("#server-to-user-u1"))["data"]["status"] == 401
        await one.hear()
        user = {"id": "u1", "user_info": {"name": "Ada"}}
        await one.say("pusher:signin", server.authenticate_user(one.socket_id, user))
        assert orjson.loads((await one.hear())["data"]["user_data"]) == user
        assert (await one.subscribe("#server-to-user-u2"))["data"]["status"] == 401
        await one.hear()
        assert (await one.subscribe("#server-to-user-u1"))["event"] == "pusher_internal:subscription_succeeded"
        joined = await one.subscribe("presence-a", server)
    assert joined["data"]["presence"]["hash"] == {"u1": {"name": "Ada"}}


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "null",
        "[]",
        "1e400",
        '"text"',
        "[" * 30_000,
        "{}",
        '{"event": 1}',
        '{"event": "nonsense"}',
        '{"event": "pusher:subscribe"}',
        '{"event": "pusher:subscribe", "data": "a"}',
        '{"event": "pusher:subscribe", "data": {}}',
        '{"event": "pusher:subscribe", "data": {"channel": 1}}',
        '{"event": "pusher:subscribe", "data": {"channel": ["a"]}}',
        '{"event": "pusher:unsubscribe", "data": {}}',
        '{"event": "pusher:unsubscribe", "data": {"channel": "a"}}',
        '{"event": "pusher:unsubscribe", "data": {"channel": {}}}',
        '{"event": "pusher:signin", "data": {}}',
        '{"event": "pusher:signin", "data": {"user_data": "{}", "auth": "a:b"}}',
        '{"event": "client-x"}',
        '{"event": "client-x", "channel": "a", "data": {}}',
        '{"event": "client-x", "channel": "private-a", "data": {}}',
        '{"event": "client-x", "channel": ["private-a"], "data": {}}',
        '{"event": "\\ud800"}',
        '{"event": "pusher_internal:member_added", "data": {}}',
    ],
)
async def test_a_bad_frame_gets_an_error_and_the_connection_lives(
    emulator: PusherEmulator, frame: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with socket(emulator) as one:
        await one.ws.send_str(frame)
        assert (await one.hear())["event"] == "pusher:error"
        await one.quiet()
    assert caplog.text == ""


@pytest.mark.parametrize("channel", ["", "a b", "a/b", "ä", "a" * 165, "#server-to-user-", "a\n"])
async def test_a_bad_channel_name_is_refused(emulator: PusherEmulator, channel: str) -> None:
    async with socket(emulator) as one:
        refused = await one.subscribe(channel)
        assert refused["event"] == "pusher:subscription_error"
        assert "Invalid channel name" in error(await one.hear())[2]
        await one.quiet()


async def test_binary_frames_are_refused(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        await one.ws.send_bytes(b'{"event": "pusher:ping"}')
        assert error(await one.hear())[2] == "Binary frames are not supported"
        await one.quiet()


async def test_a_frame_beyond_64_kib_ends_the_connection_with_1009(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        await one.ws.send_str('{"event":"' + "x" * (64 << 10) + '"}')
        assert (await one.hear_close())[0] == 1009
    await emulator.until(lambda e: e.connection_count == 0)


async def test_client_events_have_their_size(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one, socket(emulator) as two:
        for each in (one, two):
            await each.subscribe("private-a", server)
        await one.say("client-e", "é" * 5120, channel="private-a")
        assert (await two.hear())["data"] == "é" * 5120
        await one.say("client-e", "é" * 5120 + "x", channel="private-a")
        assert "exceeds the allowed maximum" in error(await one.hear())[2]
        await one.say("client-" + "e" * 194, "", channel="private-a")
        assert "at most 200 characters" in error(await one.hear())[2]
        await two.quiet()


async def test_client_events_are_private(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one, socket(emulator) as two:
        await one.subscribe("public")
        await two.subscribe("public")
        await one.say("client-e", {}, channel="public")
        refusal = "Client event rejected - only supported on private and presence channels"
        assert error(await one.hear())[2] == refusal
        await one.say("client-e", {}, channel="private-a")
        assert "not subscribed to channel private-a" in error(await one.hear())[2]
        await two.quiet()


async def test_who_does_not_answer_a_ping_is_closed_with_4201() -> None:
    async with running(activity_timeout=0.1, pong_timeout=0.1) as emulator, socket(emulator) as one:
        assert (await one.hear())["event"] == "pusher:ping"
        assert (await one.hear_close())[0] == 4201
        await emulator.until(lambda e: e.connection_count == 0)


@asynccontextmanager
async def sleeper(emulator: PusherEmulator, channel: str) -> AsyncIterator[None]:
    """A subscriber that reads nothing."""
    _, writer = await asyncio.open_connection(emulator.host, emulator.port, limit=1)
    writer.write(
        f"GET /app/{emulator.key}?protocol=7 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    subscribe = orjson.dumps({"event": "pusher:subscribe", "data": {"channel": channel}})
    writer.write(bytes([0x81, 0x80 | len(subscribe), 0, 0, 0, 0]) + subscribe)  # a mask of zeros changes nothing
    try:
        await emulator.until(lambda e: e.subscription_count(channel) == 1)
        yield
    finally:
        writer.close()


BATCH = [{"channel": "a", "name": "e", "data": "x" * 10_000}] * 10


async def test_a_reader_that_is_too_slow_is_cut_off_and_delays_nobody() -> None:
    heard = 0
    async with running(outbox_bytes=256 << 10) as emulator, sleeper(emulator, "a"), socket(emulator) as quick:
        await quick.subscribe("a")
        while emulator.connection_count == 2:  # until all buffers between here and there are full
            await asyncio.to_thread(library(emulator).trigger_batch, BATCH)
            for _ in BATCH:
                await quick.hear()
                heard += 1
        await quick.quiet()
    assert heard > 10


@pytest.mark.parametrize("code", [None, 4200])
async def test_who_is_disconnected_is_no_subscriber_from_then_on(emulator: PusherEmulator, code: int | None) -> None:
    async with sleeper(emulator, "a"):
        emulator.disconnect_all(code)
        assert emulator.subscription_count("a") == 0


async def test_a_client_that_does_not_hear_the_goodbye_is_cut_off() -> None:
    async with running(outbox_bytes=1 << 30) as emulator, sleeper(emulator, "a"):
        for _ in range(150):  # 15 MB: more than the buffers between here and there
            await asyncio.to_thread(library(emulator).trigger_batch, BATCH)
        emulator.disconnect_all(4200)
        await emulator.until(lambda e: e.connection_count == 0)


async def test_the_end_of_the_server_closes_the_connections_with_4200() -> None:
    async with running() as emulator:
        session = aiohttp.ClientSession()
        ws = await session.ws_connect(f"{emulator.url}/app/{emulator.key}?protocol=7")
        await ws.receive()
        closing = asyncio.create_task(ws.receive())
    message = await closing
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4200)
    await session.close()
