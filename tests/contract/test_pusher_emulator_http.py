"""The HTTP half of the emulator, request by request: what is refused, what is told, what is ordered to fail."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from deltafan.devserver.pusher import PusherEmulator, running
from deltafan.devserver.pusher.signatures import body_md5, request_text, sign
from deltafan.errors import ConfigurationError
from tests.contract.pusher_kit import endpoint, library, socket


async def ask(
    emulator: PusherEmulator, method: str, path: str, body: bytes = b"", *, without: str = "", **query: str
) -> tuple[int, str]:
    """A signed request. `query` changes parameters before the signature, except the signature itself."""
    parameters = {
        "auth_key": emulator.key,
        "auth_timestamp": str(int(time.time())),
        "auth_version": "1.0",
        "body_md5": body_md5(body),
    } | query
    parameters.pop(without, None)
    if without != "auth_signature":
        signature = sign(emulator.secret, request_text(method, path, parameters.items()))
        parameters.setdefault("auth_signature", signature)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, emulator.url + path, params=parameters, data=io.BytesIO(body)) as answer,
    ):
        return answer.status, await answer.text()


async def publish(emulator: PusherEmulator, body: object, path: str = "/apps/1/events") -> tuple[int, str]:
    return await ask(emulator, "POST", path, body if isinstance(body, bytes) else orjson.dumps(body))


EVENT = {"name": "e", "channel": "a", "data": "x"}


@pytest.mark.parametrize(
    ("without", "query", "message"),
    [
        ("auth_key", {}, "Unknown auth_key"),
        ("auth_version", {}, "Version required"),
        ("", {"auth_version": "2.0"}, "Version not supported"),
        ("auth_timestamp", {}, "Timestamp required"),
        ("", {"auth_timestamp": "soon"}, "Invalid timestamp"),
        ("", {"auth_timestamp": "0"}, "Timestamp expired: Given timestamp (1970-01-01T00:00:00Z) not within 600s"),
        ("", {"auth_timestamp": "99999999999"}, "Timestamp expired: Given timestamp (5138-11-16T09:46:39Z)"),
        ("auth_signature", {}, "Invalid signature"),
        ("", {"auth_signature": "00"}, 'your_secret_key), but you sent "00"'),
        ("", {"auth_signature": "é\udc80"}, "Invalid signature"),
        ("body_md5", {}, "Invalid body_md5"),
        ("", {"body_md5": "00"}, "Invalid body_md5"),
    ],
)
async def test_a_request_that_is_not_authorized_is_401_and_says_why(
    emulator: PusherEmulator, without: str, query: dict[str, str], message: str
) -> None:
    if "\udc80" in query.get("auth_signature", ""):
        url = URL(f"{emulator.url}/apps/1/events?auth_key=dev-key&auth_version=1.0&auth_timestamp={int(time.time())}")
        raw = URL(f"{url}&auth_signature=%FF%C3%ED%A0%80", encoded=True)
        async with aiohttp.ClientSession() as session, session.post(raw, data=b"{}") as answer:
            status, text = answer.status, await answer.text()
    else:
        status, text = await ask(emulator, "POST", "/apps/1/events", orjson.dumps(EVENT), without=without, **query)
    assert status == 401
    assert message in text
    assert emulator.messages == []
    assert emulator.requests[-1].status == 401


@pytest.mark.parametrize("seconds", [-598, 598])
async def test_a_clock_within_ten_minutes_is_good_enough(emulator: PusherEmulator, seconds: int) -> None:
    stamp = str(int(time.time()) + seconds)
    assert (await ask(emulator, "POST", "/apps/1/events", orjson.dumps(EVENT), auth_timestamp=stamp))[0] == 200


async def test_the_names_of_parameters_are_signed_in_lower_case(emulator: PusherEmulator) -> None:
    assert await ask(emulator, "GET", "/apps/1/channels", Filter_By_Prefix="presence-") == (200, '{"channels": {}}')


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "must be JSON"),
        (b"{", 400, "must be JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"name":"e","channel":"a","data":"\xff"}', 400, "must be JSON in UTF-8"),
        (b'{"name":"e","channel":"a","data":"\\ud800"}', 400, "must be JSON"),
        (b"[" * 100_000, 400, "must be JSON"),
        (EVENT | {"name": ""}, 400, "name: must be a string of 1 to 200 characters"),
        (EVENT | {"name": "n" * 201}, 400, "name: must be"),
        (EVENT | {"name": None}, 400, "name: must be"),
        (EVENT | {"data": {"text": "x"}}, 400, "data: must be a string"),
        (EVENT | {"data": None}, 400, "data: must be a string"),
        (EVENT | {"data": "x" * 10_241}, 413, "exceeds the allowed maximum (10240 bytes)"),
        (EVENT | {"channel": None}, 400, "channel: must be a string"),
        (EVENT | {"channel": ""}, 400, "one or more characters"),
        (EVENT | {"channel": "a b"}, 400, "one or more characters"),
        (EVENT | {"channel": "c" * 165}, 400, "at most 164 characters"),
        (EVENT | {"channels": []}, 400, "1 to 100 names"),
        (EVENT | {"channels": "a"}, 400, "1 to 100 names"),
        (EVENT | {"channels": [f"c{n}" for n in range(101)]}, 400, "1 to 100 names"),
        (EVENT | {"channels": ["a", 5]}, 400, "channel: must be a string"),
        (EVENT | {"channels": ["a", "private-encrypted-b"]}, 400, "must be the only one"),
        (EVENT | {"socket_id": "me"}, 400, "socket_id: must be"),
        (EVENT | {"socket_id": 1.5}, 400, "socket_id: must be"),
        (EVENT | {"info": "colour"}, 400, "unknown attribute 'colour'"),
        (EVENT | {"info": 1}, 400, "info: must be a string"),
    ],
)
async def test_an_event_that_breaks_a_rule_is_refused(
    emulator: PusherEmulator, body: object, status: int, message: str
) -> None:
    refused = await publish(emulator, body)
    assert refused[0] == status
    assert message in refused[1]
    assert emulator.messages == []


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "1 to 10 events"),
        ([EVENT] * 11, "1 to 10 events"),
        ({}, "1 to 10 events"),
        ([EVENT, 1], "batch[1]: must be a JSON object"),
        ([EVENT, EVENT | {"name": ""}], "batch[1]: name: must be"),
        ([{"name": "e", "channels": ["a"], "data": ""}], "batch[0]: channels: an event of a batch has one channel"),
    ],
)
async def test_a_batch_with_one_bad_event_is_refused_whole(
    emulator: PusherEmulator, batch: object, message: str
) -> None:
    refused = await publish(emulator, {"batch": batch}, "/apps/1/batch_events")
    assert refused[0] == 400
    assert message in refused[1]
    assert emulator.messages == []


async def test_the_largest_of_everything_is_accepted(emulator: PusherEmulator) -> None:
    body = {"name": "n" * 200, "data": "x" * 10_240, "channels": [f"{n:0164}" for n in range(100)]}
    assert await publish(emulator, body) == (200, "{}")
    assert len(emulator.messages) == 100
    batch = {"batch": [{"name": "e", "channel": "a", "data": "\u0001" * 10_240}] * 10}
    assert await publish(emulator, batch, "/apps/1/batch_events") == (200, "{}")
    body = b'{"name":"e","channel":"a","data":"' + b"x" * (1 << 20) + b'"}'
    assert (await publish(emulator, body))[0] == 413


async def test_info_is_told_of_each_channel_that_has_it(emulator: PusherEmulator) -> None:
    async with socket(emulator) as one:
        await one.subscribe("a")
        await one.subscribe("presence-a", library(emulator), {"user_id": "u"})
        info = {"info": "user_count,subscription_count"}
        event = {"name": "e", "data": "x", "channels": ["a", "presence-a", "b"]} | info
        batch = {"batch": [EVENT | info, EVENT, EVENT | {"channel": "presence-a"} | info]}
        told = orjson.loads((await publish(emulator, event))[1])
        batched = orjson.loads((await publish(emulator, batch, "/apps/1/batch_events"))[1])
    present = {"user_count": 1, "subscription_count": 1}
    assert told == {"channels": {"a": {"subscription_count": 1}, "presence-a": present, "b": {"subscription_count": 0}}}
    assert batched == {"batch": [{"subscription_count": 1}, {}, present]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/apps/1", 404),
        ("GET", "/apps/1/events", 405),
        ("GET", "/app/dev-key", 400),
        ("GET", "/apps/2/channels", 404),
        ("GET", "/apps/1/channels/a b", 400),
        ("POST", "/emulator/faults", 400),
        ("GET", "/healthz", 200),
    ],
)
async def test_other_paths_are_answered_in_a_line(
    emulator: PusherEmulator, method: str, path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(emulator, method, path)
    assert answer[0] == status
    assert answer[1].count("\n") <= 1
    assert caplog.text == ""


async def test_a_path_that_is_no_utf_8_is_refused_in_order(
    emulator: PusherEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/apps/%FF%ED%A0%80/channels", "/apps/1/channels/%FF", "/%FF"):
        async with (
            aiohttp.ClientSession() as session,
            session.get(URL(emulator.url + path, encoded=True)) as answer,
        ):
            assert answer.status in (401, 404)
    assert caplog.text == ""


async def get(emulator: PusherEmulator, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(emulator.url + path) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_messages_tell_what_was_published_and_by_which_request(emulator: PusherEmulator) -> None:
    await publish(emulator, EVENT)
    await publish(emulator, {"batch": [EVENT, EVENT | {"channel": "b"}]}, "/apps/1/batch_events")
    seen = await get(emulator, "/emulator/messages?channel=a")
    assert [(m["number"], m["request"], m["channel"]) for m in seen["messages"]] == [(1, 1, "a"), (2, 2, "a")]
    assert [(r["number"], r["events"], r["status"]) for r in seen["requests"]] == [(1, 1, 200), (2, 2, 200)]
    assert abs(seen["messages"][0]["time"] - time.time()) < 60
    async with aiohttp.ClientSession() as session:
        await session.delete(f"{emulator.url}/emulator/messages")
    assert await get(emulator, "/emulator/messages") == {"messages": [], "requests": []}
    await publish(emulator, EVENT)
    assert [m.number for m in emulator.messages] == [4]


async def test_the_journal_forgets_the_oldest(emulator: PusherEmulator) -> None:
    channels = [f"c{n}" for n in range(100)]
    for _ in range(51):
        await publish(emulator, {"name": "e", "data": "", "channels": channels})
    assert len(emulator.messages) == 5000
    assert (emulator.messages[0].number, emulator.messages[-1].number) == (101, 5100)


async def test_faults_are_ordered_and_withdrawn_over_http(emulator: PusherEmulator) -> None:
    url = f"{emulator.url}/emulator/faults"
    async with aiohttp.ClientSession() as session:
        async with session.post(url, json={"faults": ["status=503*2", "skew=-700"]}) as answer:
            assert await answer.json() == {"faults": ["status=503*2", "skew=-700"]}
        assert (await publish(emulator, EVENT))[0] == 503
        assert await get(emulator, "/emulator/faults") == {"faults": ["status=503*1", "skew=-700"]}
        async with session.post(url, json={"faults": ["explode"]}) as answer:
            assert answer.status == 400
            assert "unknown fault 'explode'; one of status, delay, drop, lost_reply, skew" in await answer.text()
        assert (await publish(emulator, EVENT))[0] == 503
        assert "Timestamp expired" in (await publish(emulator, EVENT))[1]
        async with session.delete(url) as answer:
            assert await answer.json() == {"faults": []}
    assert (await publish(emulator, EVENT))[0] == 200
    assert emulator.requests[0].faults == ["status=503*2", "skew=-700"]


async def test_a_delay_holds_one_request_and_who_gives_up_has_published_nothing(emulator: PusherEmulator) -> None:
    emulator.faults.set("delay=3600*1")
    asking = asyncio.create_task(publish(emulator, EVENT))
    await emulator.until(lambda e: len(e.requests) == 1)
    assert await publish(emulator, EVENT) == (200, "{}")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await publish(emulator, EVENT) == (200, "{}")
    assert [message.request for message in emulator.messages] == [2, 3]


@pytest.mark.parametrize("statuses", [[], [500, 307, 404]], ids=["at once", "after failures"])
async def test_webhooks_tell_the_life_of_channels_members_and_client_events(statuses: list[int]) -> None:
    async with endpoint() as app, running(webhook_url=f"{app.url}/webhook", secret="s" * 20) as emulator:
        app.library = server = library(emulator)
        app.statuses = list(statuses)
        async with socket(emulator) as one, socket(emulator) as two:
            await one.subscribe("presence-a", server, {"user_id": "u1"})
            await two.subscribe("presence-a", server, {"user_id": "u2"})
            await one.say("client-e", {"x": 1}, channel="presence-a")
            await two.hear()
            sender = one.socket_id
        await app.until(lambda a: any(event["name"] == "channel_vacated" for event in a.webhooks))
    channel = {"channel": "presence-a"}
    names = [event["name"] for event in app.webhooks]
    assert names[:4] == ["channel_occupied", "member_added", "member_added", "client_event"]
    assert sorted(names[4:]) == ["channel_vacated", "member_removed", "member_removed"]
    assert app.webhooks[:2] == [
        {"name": "channel_occupied"} | channel,
        {"name": "member_added", "user_id": "u1"} | channel,
    ]
    told = {"name": "client_event", "event": "client-e", "data": '{"x":1}', "socket_id": sender, "user_id": "u1"}
    assert app.webhooks[3] == told | channel
    assert emulator.undelivered_webhooks == 0
    assert app.redirected == 0


async def test_a_receiver_that_is_away_stops_nobody_and_the_rest_is_dropped_and_counted() -> None:
    async with running(webhook_url="http://127.0.0.1:9/webhook") as emulator, socket(emulator) as one:
        for number in range(600):
            await one.say("pusher:subscribe", {"channel": f"c{number}"})
            await one.hear()
            await one.say("pusher:unsubscribe", {"channel": f"c{number}"})
        await one.quiet()
        assert 150 <= emulator.undelivered_webhooks <= 200  # 1200 events, 1000 wait, up to 50 are being tried


async def test_a_port_in_use_is_said_in_a_line(emulator: PusherEmulator) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{emulator.port}: .*in use"):
        async with running(port=emulator.port):
            pass


async def test_each_start_has_a_secret_of_its_own() -> None:
    async with running() as one, running() as two:
        assert one.secret != two.secret
        assert one.variables == {
            "PUSHER_APP_ID": "1",
            "PUSHER_KEY": "dev-key",
            "PUSHER_SECRET": one.secret,
            "PUSHER_HOST": "127.0.0.1",
            "PUSHER_PORT": str(one.port),
            "PUSHER_TLS": "false",
        }
        assert one.url == f"http://127.0.0.1:{one.port}"


@pytest.mark.parametrize("headers", [{"Origin": "https://example.com"}, {"Host": "rebound.example.com"}])
async def test_what_happened_is_not_for_web_pages(emulator: PusherEmulator, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session:
        for method, path in (("GET", "messages"), ("POST", "faults"), ("DELETE", "messages")):
            async with session.request(method, f"{emulator.url}/emulator/{path}", headers=headers) as answer:
                assert answer.status == 403
