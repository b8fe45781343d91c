"""`GET /v1/jobs/{id}/events`: replay, live, resume, many viewers, slow viewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.events import ReasoningDelta, ToolCallDelta, Usage
from deltafan.settings import RedisSettings
from tests.e2e.relay_kit import (
    SPEC,
    HandWorker,
    Stream,
    hand_worker,
    running_relay,
    streaming,
    text_of,
)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield http


async def test_a_stream_that_is_open_before_the_job_begins_gets_every_event_as_the_log_has_it(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        work = await worker.take()
        sent = [work.claim.meta, *await work.say("Hel"), *await work.say("lo")]
        sent.append(await work.finish())
        events = await stream.rest()
    assert [e.data for e in events] == sent
    assert [(e.event, e.id) for e in events] == [
        ("meta", "1-0"),
        ("text_delta", "1-1"),
        ("text_delta", "1-2"),
        ("done", "1-3"),
    ]


async def test_the_first_bytes_are_a_jittered_retry_and_come_before_any_event(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, reconnect=2.0) as relay, streaming(http, relay.url, job.id) as stream:
        first = await stream.response.content.readany()
        headers = stream.response.headers
    assert stream.decoder.feed(first) == []
    assert stream.decoder.retry is not None
    assert 1000 <= stream.decoder.retry <= 3000
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert "Content-Encoding" not in headers


async def test_a_late_joiner_gets_a_compacted_replay_and_then_the_live_tail(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say(ReasoningDelta(text="Hm"), ReasoningDelta(text="m"), "a", "b", "c")
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        replayed = await stream.until("1-5")
        live = [*await work.say("d"), *await work.say("e"), await work.finish()]
        tail = await stream.rest()
    assert [(e.event, e.id) for e in replayed] == [("meta", "1-0"), ("reasoning_delta", "1-2"), ("text_delta", "1-5")]
    assert orjson.loads(replayed[2].data) | {"job": ""} == {
        "v": 1,
        "job": "",
        "id": "1-5",
        "first": "1-3",
        "type": "text_delta",
        "text": "abc",
    }
    assert [e.data for e in tail] == live


@pytest.mark.parametrize("by", ["header", "query"])
async def test_resuming_after_any_id_gives_exactly_what_follows(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, by: str
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    pieces = [f"{n} " for n in range(8)]
    for piece in pieces:
        await work.say(piece)
    await work.say(ToolCallDelta(index=0, call_id="c", name="f"), ToolCallDelta(index=0, arguments="{}"))
    await work.say(Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, source="reported"))
    await work.finish()
    async with running_relay(queue) as relay:
        for seq in range(12):
            if by == "header":
                async with streaming(http, relay.url, job.id, f"1-{seq}") as stream:
                    events = await stream.rest()
            else:
                async with http.get(f"{relay.url}/v1/jobs/{job.id}/events?after=1-{seq}") as response:
                    events = await Stream(response).rest()
            assert events[-1].id == "1-12"
            assert text_of(events) == "".join(pieces[seq:])
            assert all(int(e.id.partition("-")[2]) > seq for e in events)


async def test_the_header_wins_over_the_query_because_a_browser_that_reconnects_sends_it(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("a", "b")
    await work.finish()
    async with running_relay(queue) as relay:
        url = f"{relay.url}/v1/jobs/{job.id}/events?after=1-0"
        async with http.get(url, headers={"Last-Event-ID": "1-2"}) as response:
            assert [e.event for e in await Stream(response).rest()] == ["done"]


async def test_the_last_id_of_an_ended_job_is_answered_204_so_that_a_browser_stops(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.finish()
    async with running_relay(queue) as relay:
        url = f"{relay.url}/v1/jobs/{job.id}/events"
        async with http.get(url, headers={"Last-Event-ID": "1-1"}) as response:
            assert response.status == 204
            assert await response.read() == b""


@pytest.mark.parametrize("ended", [False, True])
async def test_a_cursor_beyond_the_log_is_answered_with_a_reset_and_everything(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, ended: bool
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("a", "b")
    if ended:
        await work.finish()
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id, "2-7") as stream:
        if not ended:
            await stream.until("1-2")
            await work.finish()
        events = await stream.rest()
        raw = stream.raw.split(b"\n\n")
    assert raw[1] == b'event: reset\ndata: {"v":1,"job":"%b","type":"reset","reason":"cursor_ahead"}' % job.id.encode()
    assert events[-1].event == "done"
    assert b"event: meta" in raw[2]


async def test_a_cursor_on_a_job_that_has_not_begun_is_reset(queue: AsyncQueue, http: aiohttp.ClientSession) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id, "1-5") as stream:
        event = await stream.next()
    assert event is not None
    assert event.event == "reset"


@pytest.mark.parametrize("cursor", ["5", "0-1", "1-x", "1-1-1", "-1", "1-01", "99999999999-1", "☃"])
async def test_a_garbage_cursor_is_refused_by_name(queue: AsyncQueue, http: aiohttp.ClientSession, cursor: str) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        async with http.get(f"{relay.url}/v1/jobs/{job.id}/events", params={"after": cursor}) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"], error["fields"][0]["field"]) == (400, "invalid_cursor", "after")
        headers = {"Last-Event-ID": cursor}
        async with http.get(f"{relay.url}/v1/jobs/{job.id}/events", headers=headers) as response:
            assert (await response.json())["error"]["fields"][0]["field"] == "Last-Event-ID"


async def test_events_that_are_no_longer_kept_are_410_while_the_status_still_answers(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.finish()
    await queue.connections.commands.delete(work.claim.keys.log(job.id))
    async with running_relay(queue) as relay:
        for accept in ("text/event-stream", "application/json"):
            async with http.get(f"{relay.url}/v1/jobs/{job.id}/events", headers={"Accept": accept}) as response:
                assert response.status == 410
                assert (await response.json())["error"]["code"] == "log_expired"
        async with http.get(f"{relay.url}/v1/jobs/{job.id}") as response:
            assert response.status == 200


async def test_a_snapshot_holds_the_compacted_events_and_where_to_go_on(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        url, headers = f"{relay.url}/v1/jobs/{job.id}/events", {"Accept": "application/json"}
        async with http.get(url, headers=headers) as response:
            assert await response.json() == {"job": job.id, "state": "queued", "last_id": None, "events": []}
        work = await worker.take()
        await work.say("a", "b")
        async with http.get(url, headers=headers) as response:
            snapshot = await response.json()
        assert (snapshot["state"], snapshot["last_id"]) == ("running", "1-2")
        assert [(e["type"], e["id"], e.get("text")) for e in snapshot["events"]] == [
            ("meta", "1-0", None),
            ("text_delta", "1-2", "ab"),
        ]
        async with http.get(f"{url}?after=1-2", headers=headers) as response:
            assert await response.json() == {"job": job.id, "state": "running", "last_id": "1-2", "events": []}
        async with http.get(f"{url}?after=7-2", headers=headers) as response:
            snapshot = await response.json()
        assert (snapshot["reset"], len(snapshot["events"])) == ("cursor_ahead", 2)


async def test_every_viewer_gets_equal_bytes_by_one_subscription(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, asyncio.TaskGroup() as group:

        async def watch() -> bytes:
            async with streaming(http, relay.url, job.id) as stream:
                await stream.rest()
                return stream.raw.partition(b"\n\n")[2]

        viewers = [group.create_task(watch()) for _ in range(100)]
        work = await worker.take()
        for n in range(20):
            await work.say(f"{n} ")
        subscribers = await queue.connections.commands.pubsub_numsub(work.claim.keys.live(job.id))
        await work.finish()
    assert subscribers[0][1] == 1
    texts = {
        b"".join(
            orjson.loads(line[6:])["text"].encode()
            for line in viewer.result().splitlines()
            if line.startswith(b"data: ") and b"text_delta" in line
        )
        for viewer in viewers
    }
    assert texts == {"".join(f"{n} " for n in range(20)).encode()}
    late = [viewer.result().split(b"\n\n")[-2] for viewer in viewers]
    assert len(set(late)) == 1


async def test_two_relays_serve_one_job_and_a_reader_moves_between_them(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    async with AsyncQueue(redis_settings) as other, running_relay(queue) as one, running_relay(other) as two:
        async with streaming(http, one.url, job.id) as stream:
            await work.say("a")
            seen = await stream.until("1-1")
        await work.say("b")
        async with streaming(http, two.url, job.id, seen[-1].id) as stream:
            await stream.until("1-2")
            await work.say("c")
            await work.finish()
            rest = await stream.rest()
    assert text_of(rest) == "c"


async def test_an_http_1_0_client_such_as_a_proxy_gets_the_stream_without_chunks(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("a")
    async with running_relay(queue) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        writer.write(f"GET /v1/jobs/{job.id}/events HTTP/1.0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b'"text":"a"}\n\n')
        live = await work.say("b")
        done = await work.finish()
        rest = await reader.read()
        writer.close()
    assert b"Transfer-Encoding" not in head
    expected = b"id: 1-2\nevent: text_delta\ndata: %b\n\nid: 1-3\nevent: done\ndata: %b\n\n" % (live[0], done)
    assert rest == expected


async def test_a_long_log_is_replayed_in_pages_while_the_job_goes_on(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    for start in range(0, 2500, 500):
        await work.say(*(f"{n} " for n in range(start, start + 500)))
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        await work.say("end")
        await work.finish()
        events = await stream.rest()
    assert text_of(events) == "".join(f"{n} " for n in range(2500)) + "end"


async def test_a_new_attempt_arrives_with_its_meta_on_the_open_stream(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        work = await worker.take()
        await work.say("void")
        assert await worker.claims.release(work.claim, b"") == "released"
        async with hand_worker(redis_settings, "second") as second:
            again = await second.take()
            await again.say("good")
            await again.finish()
        events = await stream.rest()
    metas = [orjson.loads(e.data) for e in events if e.event == "meta"]
    assert [(m["attempt"], m.get("restart", False)) for m in metas] == [(1, False), (2, True)]
    assert [e.id for e in events] == ["1-0", "1-1", "2-0", "2-1", "2-2"]


async def test_a_job_that_a_web_app_added_by_hand_is_followed_from_before_a_worker_has_seen_it(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    entry = await queue.connections.commands.xadd("deltafan:{0}:queue:default:normal", {"job": orjson.dumps(SPEC)})
    job_id = f"0-default-normal-{entry.decode()}"
    async with running_relay(queue) as relay, streaming(http, relay.url, job_id) as stream:
        async with http.get(f"{relay.url}/v1/jobs/{job_id}") as response:
            assert (await response.json())["state"] == "queued"
        work = await worker.take()
        await work.say("Hi")
        await work.finish()
        assert [e.event for e in await stream.rest()] == ["meta", "text_delta", "done"]
