"""The emulator as the real pusher-js 8 in Node meets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pusher import Pusher

from deltafan.devserver.pusher import PusherEmulator, running
from tests.contract.pusher_kit import Endpoint, browser, endpoint, library
from tests.js_kit import JS, needs_node

pytestmark = needs_node


@pytest.fixture
def server(emulator: PusherEmulator) -> Pusher:
    return library(emulator)


@pytest.fixture
async def app(server: Pusher) -> AsyncIterator[Endpoint]:
    async with endpoint() as opened:
        opened.library = server
        opened.user = {"id": "u1", "user_id": "u1", "user_info": {"name": "Ada"}}
        yield opened


@pytest.mark.parametrize("channel", ["news", "private-news", "private-encrypted-news", "presence-news"])
async def test_every_kind_of_channel_delivers_what_the_server_library_sends(
    emulator: PusherEmulator, server: Pusher, app: Endpoint, channel: str
) -> None:
    async with browser(emulator, app) as page:
        await page.subscribed(channel)
        for text in ("Hel", "lo 🌊"):
            await asyncio.to_thread(server.trigger, channel, "text_delta", {"text": text})
        heard = [(await page.event("text_delta", channel))["data"]["text"] for _ in range(2)]
    assert heard == ["Hel", "lo 🌊"]
    encrypted = channel.startswith("private-encrypted-")
    assert all(("ciphertext" in message.data) is encrypted for message in emulator.messages)


async def test_unsubscribing_ends_the_delivery_and_vacates_the_channel(
    emulator: PusherEmulator, server: Pusher
) -> None:
    async with browser(emulator) as page:
        await page.subscribed("a")
        await page.subscribed("b")
        await page.do("unsubscribe", channel="a")
        await emulator.until(lambda e: e.subscription_count("a") == 0)
        await asyncio.to_thread(server.trigger, ["a", "b"], "e", "x")
        await page.event("e", "b")
        assert not [line for line in page.script.said if line.get("channel") == "a" and line.get("event") == "e"]


async def test_a_refused_authorization_is_a_subscription_error(emulator: PusherEmulator, app: Endpoint) -> None:
    app.forbidden.add("private-secret")
    async with browser(emulator, app) as page:
        await page.do("subscribe", channel="private-secret")
        error = await page.event("pusher:subscription_error", "private-secret")
    assert (error["data"]["type"], error["data"]["status"]) == ("AuthError", 403)


async def test_a_wrong_signature_is_a_subscription_error_and_the_connection_stays(
    emulator: PusherEmulator, app: Endpoint
) -> None:
    app.library = library(emulator, secret="another-secret")
    async with browser(emulator, app) as page:
        await page.do("subscribe", channel="private-secret")
        error = await page.event("pusher:subscription_error", "private-secret")
        told = await page.until("error")
        await page.subscribed("public")
    assert (error["data"]["type"], error["data"]["status"]) == ("AuthError", 401)
    assert told["error"]["data"]["code"] == 4009
    assert "Invalid signature: Expected HMAC SHA256 hex digest of" in told["error"]["data"]["message"]
    assert emulator.subscription_count("private-secret") == 0


async def test_presence_tells_members_of_each_other(emulator: PusherEmulator, app: Endpoint) -> None:
    async with browser(emulator, app) as first:
        mine = await first.subscribed("presence-room")
        app.user = {"user_id": 2, "user_info": {"name": "Bob"}}
        async with browser(emulator, app) as second, browser(emulator, app) as same_user:
            theirs = await second.subscribed("presence-room")
            added = await first.until("member", event="pusher:member_added")
            await same_user.subscribed("presence-room")
            await second.do("disconnect")
            await emulator.until(lambda e: e.subscription_count("presence-room") == 2)
            await same_user.do("unsubscribe", channel="presence-room")
            removed = await first.until("member", event="pusher:member_removed")
        events = [line["event"] for line in first.script.said if line["said"] == "member"]
    assert mine["data"]["members"] == {"u1": {"name": "Ada"}}
    assert theirs["data"]["members"] == {"u1": {"name": "Ada"}, "2": {"name": "Bob"}}
    assert (theirs["data"]["count"], theirs["data"]["myID"]) == (2, 2)
    assert added["member"] == {"id": "2", "info": {"name": "Bob"}}
    assert removed["member"]["id"] == "2"
    assert events == ["pusher:member_added", "pusher:member_removed"]  # once a user, not once a connection


@pytest.mark.parametrize(("channel", "user_id"), [("private-chat", None), ("presence-chat", "u1")])
async def test_a_client_event_reaches_the_others_only(
    emulator: PusherEmulator, app: Endpoint, channel: str, user_id: str | None
) -> None:
    async with browser(emulator, app) as sender, browser(emulator, app) as receiver:
        await sender.subscribed(channel)
        await receiver.subscribed(channel)
        await sender.do("trigger", channel=channel, event="client-typing", data={"on": True})
        heard = await receiver.until("typing")
        await receiver.do("trigger", channel=channel, event="client-answer", data="plain text")
        answer = await sender.event("client-answer")
        assert not [line for line in sender.script.said if line["said"] == "typing"]
    assert (heard["data"], heard.get("user_id")) == ({"on": True}, user_id)
    assert answer["data"] == "plain text"


async def test_the_eleventh_client_event_in_a_second_is_refused(emulator: PusherEmulator, app: Endpoint) -> None:
    async with browser(emulator, app) as page:
        await page.subscribed("private-chat")
        for number in range(40):  # more than a slow machine spreads over the seconds it needs
            await page.do("trigger", channel="private-chat", event="client-e", data={"n": number})
        error = await page.until("error")
    assert error["error"]["data"]["code"] == 4301


@pytest.mark.parametrize("code", [None, 4200, 4100], ids=["cut", "4200", "4100"])
async def test_a_page_that_was_disconnected_comes_back_and_subscribes_again(
    emulator: PusherEmulator, server: Pusher, app: Endpoint, code: int | None
) -> None:
    async with browser(emulator, app) as page:
        await page.subscribed("private-news")
        first = next(line for line in page.script.said if line.get("state") == "connected")
        emulator.disconnect_all(code, "for a test")
        await emulator.until(lambda e: e.subscription_count("private-news") == 0)
        again = await page.until("state", state="connected")
        await page.event("pusher:subscription_succeeded", "private-news")
        await asyncio.to_thread(server.trigger, "private-news", "e", "x")
        assert (await page.event("e"))["data"] == "x"
    assert again["socket_id"] != first["socket_id"]


async def test_an_unknown_key_ends_the_attempts(emulator: PusherEmulator) -> None:
    async with browser(emulator) as page:
        await page.do("disconnect")
        await page.do("connect", key="another-key", options=_plain(emulator))
        error = await page.until("error")
        await page.until("state", state="disconnected")
    assert error["error"]["error"]["data"]["code"] == 4001


async def test_a_silent_page_is_pinged_and_answers() -> None:
    async with running(activity_timeout=0.2) as emulator, browser(emulator) as page:
        for _ in range(2):  # the second ping comes only after the first was answered
            await page.until("received", event="pusher:ping")
            await page.until("sent", event="pusher:pong")
        assert [line["state"] for line in page.script.said if line["said"] == "state"][-1] == "connected"


async def test_a_page_that_hears_nothing_pings_and_is_answered(emulator: PusherEmulator) -> None:
    async with browser(emulator, activityTimeout=100) as page:
        await page.until("received", event="pusher:pong")
        await page.until("received", event="pusher:pong")


async def test_a_page_signs_in_and_hears_what_is_sent_to_its_user(
    emulator: PusherEmulator, server: Pusher, app: Endpoint
) -> None:
    async with browser(emulator, app) as page:
        await page.do("signin")
        await emulator.until(lambda e: e.subscription_count("#server-to-user-u1") == 1)
        await asyncio.to_thread(server.trigger, "#server-to-user-u1", "hello", {"to": "u1"})
        heard = await page.until("user", event="hello")
    assert heard["data"] == {"to": "u1"}


def test_the_lock_names_the_public_registry_only() -> None:
    packages = json.loads((JS / "package-lock.json").read_text())["packages"]
    resolved = {name: package.get("resolved", "") for name, package in packages.items() if name}
    assert resolved["node_modules/pusher-js"]
    assert [name for name, url in resolved.items() if not url.startswith("https://registry.npmjs.org/")] == []


def _plain(emulator: PusherEmulator) -> dict[str, Any]:
    return {
        "cluster": "",
        "wsHost": emulator.host,
        "wsPort": emulator.port,
        "forceTLS": False,
        "enabledTransports": ["ws"],
    }
