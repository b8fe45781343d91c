"""The emulator as the real `pusher` package, the server library, meets it."""

from __future__ import annotations

import asyncio

import pytest
import requests
from pusher import Pusher
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus, PusherForbidden
from pusher.http import POST, Request

from deltafan.devserver.pusher import PusherEmulator, running
from tests.contract.pusher_kit import library, socket


async def test_a_triggered_event_reaches_every_subscriber_and_the_journal(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one, socket(emulator) as two, socket(emulator) as other:
        await one.subscribe("news")
        await two.subscribe("news")
        await other.subscribe("sport")
        assert await asyncio.to_thread(library(emulator).trigger, "news", "text_delta", {"text": "Grüße 🌊"}) == {}
        heard = [await one.hear(), await two.hear()]
        await other.quiet()
    assert heard == [{"event": "text_delta", "channel": "news", "data": {"text": "Grüße 🌊"}}] * 2
    (message,), (request,) = emulator.messages, emulator.requests
    assert (message.channel, message.name, message.data) == ("news", "text_delta", '{"text": "Grüße 🌊"}')
    assert (message.request, request.number, request.events, request.status) == (1, 1, 1, 200)
    assert (request.method, request.path) == ("POST", "/apps/1/events")


async def test_one_trigger_goes_to_several_channels_and_not_to_the_excluded_socket(emulator: PusherEmulator) -> None:
    async with socket(emulator) as sender, socket(emulator) as receiver:
        for one in (sender, receiver):
            await one.subscribe("a")
        await receiver.subscribe("b")
        await asyncio.to_thread(library(emulator).trigger, ["a", "b"], "e", "x", sender.socket_id)
        assert [(await receiver.hear())["channel"] for _ in "ab"] == ["a", "b"]
        await sender.quiet()
    assert [message.socket_id for message in emulator.messages] == [sender.socket_id] * 2
    assert emulator.requests[0].events == 1


async def test_a_batch_arrives_in_order_and_counts_as_one_request(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        await one.subscribe("a")
        batch = [{"channel": "a", "name": "e", "data": str(number)} for number in range(10)]
        assert await asyncio.to_thread(library(emulator).trigger_batch, batch) == {}
        assert [(await one.hear())["data"] for _ in batch] == list(range(10))
    assert [(r.path, r.events) for r in emulator.requests] == [("/apps/1/batch_events", 10)]
    assert {message.request for message in emulator.messages} == {1}


async def test_a_batch_of_more_than_ten_is_refused_whole(emulator: PusherEmulator) -> None:
    batch = [{"channel": "a", "name": "e", "data": ""}] * 11
    with pytest.raises(PusherBadRequest, match="batch: must be an array of 1 to 10 events"):
        await asyncio.to_thread(library(emulator).trigger_batch, batch)
    assert emulator.messages == []


async def test_channels_tell_who_is_there(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one, socket(emulator) as two, socket(emulator) as three:
        await one.subscribe("public")
        await one.subscribe("presence-room", server, {"user_id": "u1"})
        await two.subscribe("presence-room", server, {"user_id": "u1"})
        await three.subscribe("presence-room", server, {"user_id": "u2"})

        def asked() -> list[object]:
            return [
                server.channels_info(),
                server.channels_info("presence-", ["user_count", "subscription_count"]),
                server.channel_info("presence-room", ["user_count", "subscription_count"]),
                server.channel_info("public"),
                server.channel_info("nobody", ["subscription_count"]),
                server.users_info("presence-room"),
            ]

        everything, present, room, public, nobody, users = await asyncio.to_thread(asked)
    assert everything == {"channels": {"public": {}, "presence-room": {}}}
    assert present == {"channels": {"presence-room": {"user_count": 2, "subscription_count": 3}}}
    assert room == {"occupied": True, "user_count": 2, "subscription_count": 3}
    assert public == {"occupied": True}
    assert nobody == {"occupied": False, "subscription_count": 0}
    assert users == {"users": [{"id": "u1"}, {"id": "u2"}]}


async def test_attributes_that_a_channel_does_not_have_are_refused(emulator: PusherEmulator) -> None:
    server = library(emulator)
    calls = [
        lambda: server.channels_info(None, ["user_count"]),
        lambda: server.channel_info("public", ["user_count"]),
        lambda: server.channel_info("public", ["colour"]),
        lambda: server.users_info("public"),
    ]
    for call in calls:
        with pytest.raises(PusherBadRequest):
            await asyncio.to_thread(call)


async def test_an_encrypted_channel_carries_what_the_library_encrypted(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one:
        await one.subscribe("private-encrypted-room", server)
        await asyncio.to_thread(server.trigger, "private-encrypted-room", "e", {"text": "hidden"})
        assert set((await one.hear())["data"]) == {"nonce", "ciphertext"}
    assert "hidden" not in emulator.messages[0].data


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"secret": "another-secret"}, PusherBadAuth, "Invalid signature: you should have sent HmacSHA256Hex"),
        ({"key": "another-key"}, PusherBadAuth, "Unknown auth_key"),
        ({"app_id": "2"}, PusherBadStatus, "404: Unknown app id"),
    ],
    ids=["secret", "key", "app id"],
)
async def test_wrong_credentials_are_refused(
    emulator: PusherEmulator, changes: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await asyncio.to_thread(library(emulator, **changes).trigger, "a", "e", "x")
    assert emulator.messages == []


async def test_data_may_have_10240_bytes_and_not_one_more(emulator: PusherEmulator) -> None:
    def trigger(data: str) -> None:
        library(emulator).trigger("a", "e", data)

    await asyncio.to_thread(trigger, "é" * 5120)
    with pytest.raises(PusherBadStatus, match=r"413: .*exceeds the allowed maximum"):
        await asyncio.to_thread(trigger, "é" * 5120 + "x")
    assert [len(message.data.encode()) for message in emulator.messages] == [10240]


async def test_a_channel_name_may_have_164_characters_though_the_library_lets_200_pass(
    emulator: PusherEmulator,
) -> None:
    def trigger(channel: str) -> None:
        library(emulator).trigger(channel, "e", "x")

    await asyncio.to_thread(trigger, "c" * 164)
    with pytest.raises(PusherBadRequest, match="at most 164 characters"):
        await asyncio.to_thread(trigger, "c" * 165)


async def test_a_skewed_clock_is_told_in_pushers_words() -> None:
    async with running(faults=["skew=700"]) as emulator:
        with pytest.raises(PusherBadAuth) as refused:
            await asyncio.to_thread(library(emulator).trigger, "a", "e", "x")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert refused.match(rf"Timestamp expired: Given timestamp \({stamp}\) not within 600s of server time \({stamp}\)")


async def test_faults_come_in_order_and_end(emulator: PusherEmulator) -> None:
    server: Pusher = library(emulator)
    emulator.faults.set("status=500*2", "status=403*1")
    errors: list[type[BaseException]] = []
    for _ in range(3):
        with pytest.raises((PusherBadStatus, PusherForbidden)) as refused:
            await asyncio.to_thread(server.trigger, "a", "e", "x")
        errors.append(refused.type)
    await asyncio.to_thread(server.trigger, "a", "e", "x")
    assert errors == [PusherBadStatus, PusherBadStatus, PusherForbidden]
    assert [record.status for record in emulator.requests] == [500, 500, 403, 200]
    assert len(emulator.messages) == 1
    assert emulator.faults.pending == []


async def test_a_lost_reply_has_been_applied_and_a_dropped_request_has_not(
    emulator: PusherEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    server = library(emulator)
    for fault, published in (("drop*1", 0), ("lost_reply*1", 1)):
        emulator.faults.set(fault)
        with pytest.raises(requests.exceptions.ConnectionError):
            await asyncio.to_thread(server.trigger, "a", "e", "x")
        assert len(emulator.messages) == published
    assert [record.status for record in emulator.requests] == [None, None]
    assert caplog.text == ""


async def test_terminating_a_user_ends_the_connections_that_signed_in_as_that_user(emulator: PusherEmulator) -> None:
    server = library(emulator)
    async with socket(emulator) as one, socket(emulator) as other:
        await one.say("pusher:signin", server.authenticate_user(one.socket_id, {"id": "u1"}))
        assert (await one.hear())["event"] == "pusher:signin_success"
        # The package leaves the app out of this one path, so the request is built from its parts.
        client = server._pusher_client
        request = Request(client, POST, "/apps/1/users/u1/terminate_connections", {})
        assert await asyncio.to_thread(client.http.send_request, request) == {}
        assert (await one.hear_close())[0] == 4009
        await other.quiet()
