"""Case 22: a cursor that is none, or of no event of the job's log, is refused by name, or answered with a reset.

By every door: the header and `?after=`, as a stream and as a snapshot; `events` and `sse` of the Python client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote_from_bytes

import aiohttp
import orjson
import pytest
import pytest_asyncio

from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.errors import ValidationError
from deltafan.events import EventId
from deltafan.settings import RedisSettings
from deltafan.sse import Decoder
from deltafan.wire import decode
from tests.contract.lua_kit import Lab, Work, open_lab
from tests.e2e.relay_kit import Relay, running_relay
from tests.oracle import check_whole

GARBAGE = {
    "a word": b"garbage",
    "a number": b"5",
    "signed": b"-1-1",
    "no such attempt": b"0-1",
    "leading zero": b"1-01",
    "three parts": b"1-1-1",
    "two ids": b"1-1,1-2",
    "NUL": b"\x00",
    "an id and NUL": b"1-1\x00",
    "an id and a newline": b"1-1\n",
    "digits of another script": "١-١".encode(),
    "no UTF-8": b"\xff\xfe",
    "beyond 64 bits": b"1-" + b"9" * 30,
    "an attempt beyond 32 bits": b"9999999999-0",
    "8,000 bytes": b"1" * 8000,
    "20,000 bytes": b"1-" + b"1" * 20_000,
}
TOO_LONG = {"8,000 bytes": (400,), "20,000 bytes": (414, 431)}
"""What HTTP itself has a bound for is refused by that."""

VOID = {
    "the next event": "3-3",
    "the future": "3-999999",
    "a later attempt": "4-0",
    "the largest there is": "2147483647-999999999999999999",
    "past the end of an older attempt": "2-9",
    "past the end of the first attempt": "1-3",
    "another job's": "7-42",
}


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def relay(queue: AsyncQueue) -> AsyncIterator[Relay]:
    async with running_relay(queue) as opened:
        yield opened


@pytest_asyncio.fixture
async def work(lab: Lab) -> Work:
    """A job in its third attempt, which goes on from the text of the second; each has said two things."""
    worker = await lab.worker()
    await lab.enqueue(on_takeover="continue")
    for attempt in range(1, 4):
        work = await worker.begin(can_continue=attempt > 2)
        for n in range(2):
            await work.say(f"{attempt}{n} ")
        if attempt < 3:
            await work.release()
    work.text = "20 21 30 31 "
    return work


async def _ask(relay: Relay, path: str, *headers: tuple[str, bytes]) -> tuple[int, bytes]:
    """By hand: no client of ours would send what is sent here. Gives the status and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]), limit=1 << 22)
    lines = [f"GET {path} HTTP/1.0".encode(), b"Host: localhost", *(f"{n}: ".encode() + v for n, v in headers)]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    try:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            return int(head.split()[1]), await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("by", ["header", "query"])
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_cursor_that_is_no_event_id_is_refused_by_name(
    relay: Relay, work: Work, garbage: str, by: str, accept: str
) -> None:
    value = GARBAGE[garbage]
    path, headers = f"/v1/jobs/{work.id}/events", [("Accept", accept.encode())]
    if by == "header":
        if b"\n" in value:
            value = value.replace(b"\n", b"\n  ")  # as a folded header, which HTTP no longer has
        headers.append(("Last-Event-ID", value))
    else:
        path += f"?after={quote_from_bytes(value)}"
    status, body = await _ask(relay, path, *headers)
    error = orjson.loads(body)["error"]
    assert status in TOO_LONG.get(garbage, (400,))
    if error["code"] == "invalid_cursor":
        field = "Last-Event-ID" if by == "header" else "after"
        [fault] = error["fields"]
        assert fault == {"field": field, "message": "must be an event id, <attempt>-<seq>, such as 1-5"}
    else:  # it was no HTTP any more
        assert (by, error["code"]) in {
            ("header", "bad_request"),
            ("header", "headers_too_large"),
            ("query", "uri_too_long"),
        }


@pytest.mark.parametrize("garbage", [*GARBAGE.values(), *map(bytes.decode, map(bytes, [b"", b"1", b"1-"]))])
async def test_the_python_client_refuses_such_a_cursor_at_once(queue: AsyncQueue, work: Work, garbage: Any) -> None:
    text = garbage.decode(errors="replace") if isinstance(garbage, bytes) else garbage
    for follow in (queue.job(work.id).events, queue.job(work.id).sse):
        with pytest.raises(ValidationError, match="after: must be an event id"):
            follow(text)


@pytest.mark.parametrize(
    "garbage",
    [5, True, b"1-1", (1, 1), EventId(0, 0), EventId(1, -1), EventId(1, 2**80), EventId(2**70, 0)],
    ids=str,
)
async def test_the_python_client_refuses_what_is_no_text_and_no_id_either(
    queue: AsyncQueue, work: Work, garbage: Any
) -> None:
    for follow in (queue.job(work.id).events, queue.job(work.id).sse):
        with pytest.raises(ValidationError, match="after: must be an event id"):
            follow(garbage)


async def _sse(chunks: AsyncIterator[bytes]) -> list[tuple[str, bytes]]:
    decoder = Decoder()
    return [(frame.event, frame.data) async for chunk in chunks for frame in decoder.feed(chunk)]


def _check_reset(frames: list[tuple[str, bytes]], work: Work) -> None:
    """The first that comes says so, and everything follows."""
    (first, data), rest = frames[0], frames[1:]
    expected = {"v": 1, "job": work.id, "type": "reset", "reason": "cursor_ahead"}
    assert (first, orjson.loads(data)) == ("reset", expected)
    events = [event for _, data in rest if (event := decode(data)) is not None]
    check_whole(events, work.text)


@pytest.mark.topologies("valkey", "cluster")
@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
@pytest.mark.parametrize("cursor", VOID.values(), ids=VOID)
async def test_a_cursor_that_the_log_never_reached_is_answered_with_a_reset_and_everything(
    relay: Relay, queue: AsyncQueue, http: aiohttp.ClientSession, work: Work, cursor: str, ended: bool
) -> None:
    """Never with what follows it in another attempt, which goes on from a text that the reader has not."""
    url = f"{relay.url}/v1/jobs/{work.id}/events"
    if ended:
        if cursor == "3-3":
            cursor = "3-5"  # the last one is 3-4: usage and done have come
        await work.finish()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following: list[asyncio.Task[list[tuple[str, bytes]]]] = []
        for headers, query in (({"Last-Event-ID": cursor}, {}), ({}, {"after": cursor})):
            answer = await http.get(url, headers=headers, params=query)
            assert answer.status == 200
            following.append(group.create_task(_sse(answer.content.iter_any())))
            accept = {"Accept": "application/json"}
            async with http.get(url, headers=headers | accept, params=query) as whole:
                snapshot = await whole.json()
            assert snapshot["reset"] == "cursor_ahead"
            assert snapshot["events"][0]["id"] == "1-0"
        following.append(group.create_task(_sse(queue.job(work.id).sse(cursor))))
        events = group.create_task(_events(queue.job(work.id), cursor))
        if not ended:
            await _followed_by(http, relay, 2)
            await work.finish()
    for frames in following:
        _check_reset(frames.result(), work)
    check_whole(events.result(), work.text)


async def _events(job: AsyncJob, cursor: str) -> list[Any]:
    return [event async for event in job.events(cursor)]


async def _followed_by(http: aiohttp.ClientSession, relay: Relay, streams: int) -> None:
    while True:
        async with http.get(f"{relay.url}/v1/stats") as answer:
            if (await answer.json())["streams"]["open"] == streams:
                return


@pytest.mark.parametrize("cursor", ["1-0", "1-2", "2-0", "2-2"])
async def test_an_id_of_an_older_attempt_is_good_and_the_new_attempts_say_what_becomes_of_it(
    relay: Relay, http: aiohttp.ClientSession, work: Work, cursor: str
) -> None:
    await work.finish()
    url = f"{relay.url}/v1/jobs/{work.id}/events"
    async with http.get(url, headers={"Last-Event-ID": cursor}) as answer:
        frames = await _sse(answer.content.iter_any())
    assert all(kind != "reset" for kind, _ in frames)
    attempt, seq = map(int, cursor.split("-"))
    metas = [orjson.loads(data) for kind, data in frames if kind == "meta"]
    known = {2: "restart", 3: "continued"}
    assert [(meta["attempt"], meta[known[meta["attempt"]]]) for meta in metas] == [
        (number, True) for number in known if number > attempt
    ]
    events = [event for _, data in frames if (event := decode(data)) is not None]
    check_whole(events, None, after=EventId(attempt, seq))


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_bad_cursor_disturbs_no_other_follower(
    relay: Relay, queue: AsyncQueue, http: aiohttp.ClientSession, work: Work
) -> None:
    async with http.get(f"{relay.url}/v1/jobs/{work.id}/events") as good:
        for value in (*GARBAGE.values(), *(cursor.encode() for cursor in VOID.values())):
            path = f"/v1/jobs/{work.id}/events?after={quote_from_bytes(value)}"
            await _ask(relay, path, ("Accept", b"application/json"))
        await work.say("32 ")
        await work.finish()
        frames = await _sse(good.content.iter_any())
    check_whole([event for _, data in frames if (event := decode(data)) is not None], work.text)
