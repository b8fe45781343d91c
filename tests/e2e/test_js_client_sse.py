"""deltafan.js over SSE: whatever happens to connections, relays and workers, each event comes once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from aiohttp import web

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, Text, parse_faults
from deltafan.devserver.provider import running as running_provider
from deltafan.devserver.proxy import proxied
from deltafan.events import ReasoningDelta, TextDelta, ToolCallDelta, Usage
from tests.conftest import StartWorker
from tests.e2e.js_client_kit import Follower, Nobody, following, free_port
from tests.e2e.relay_kit import SPEC, HandWorker, running_relay
from tests.js_kit import needs_node

pytestmark = needs_node

TEXT = "Ελλάδα, 日本語 and a flag 🏳️‍🌈, as the model says it. " * 8
QUICK = {"heartbeat": 0.1, "reconnect": 0.05}


@pytest.fixture
async def slow() -> AsyncIterator[Provider]:
    """A provider that takes about two seconds for `TEXT`."""
    async with running_provider(Script(source=Text(TEXT), chunk_size=4, rate=60)) as provider:
        yield provider


async def test_a_stream_is_followed_from_the_queue_to_its_end_and_everything_is_known_of_it(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
        await follower.until("state", lambda state: state == "queued")
        work = await worker.take()
        await follower.until("state", lambda state: state == "running")
        await work.say(ReasoningDelta(text="Hm. "), "Hel", "lo 😀", TextDelta(text="other", choice=1))
        await work.say(ToolCallDelta(index=0, call_id="a", name="f"), ToolCallDelta(index=0, arguments='{"x":'))
        await work.say(ToolCallDelta(index=1, call_id="b", name="g", arguments="{}"))
        await work.say(ToolCallDelta(index=0, arguments="1}"), ToolCallDelta(index=0, call_id="c", name="f"))
        await work.say(Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, source="reported"))
        work.text = "Hello 😀"
        await work.finish()
        result = await follower.until("done")
        await follower.whole("Hello 😀")
    assert (result["state"], result["finishReason"], result["reasoning"]) == ("done", "stop", "Hm. ")
    assert result["choices"] == ["Hello 😀", "other"]
    assert result["toolCalls"] == [
        {"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'},
        {"index": 1, "id": "b", "name": "g", "arguments": "{}"},
        {"index": 0, "id": "c", "name": "f", "arguments": ""},
    ]
    assert result["usage"]["total_tokens"] == 5
    assert result["error"] is None


async def test_connections_that_are_cut_again_and_again_lose_and_repeat_nothing(
    queue: AsyncQueue, start_worker: StartWorker, slow: Provider
) -> None:
    await start_worker(slow)
    async with running_relay(queue, **QUICK) as relay, proxied(relay.url) as proxy:
        job = await queue.enqueue(SPEC)
        async with following(job.id, relay=proxy.url(relay.url)) as follower:
            for _ in range(6):
                await follower.until("event", lambda event: event["type"] == "text_delta")
                proxy.cut()
                await follower.until_connected(False)
            await follower.whole(TEXT)
        assert proxy.accepted > 6


async def test_a_connection_that_went_silent_is_found_by_missing_heartbeats_and_replaced(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, **QUICK) as relay, proxied(relay.url) as proxy:
        async with following(job.id, relay=proxy.url(relay.url), silence=700) as follower:
            work = await worker.take()
            await work.say("one ")
            await follower.until_event("1-1")
            proxy.silence()
            await work.say("two")
            await follower.until_event("1-2")  # the relay does not end the old connection meanwhile
            await work.finish()
            await follower.whole("one two")
        assert [m["connected"] for m in follower.script.said if "connected" in m].count(False) == 2, (
            follower.script.said
        )


@pytest.mark.parametrize("news", ["online", "sleep"])
async def test_after_sleep_or_another_network_the_connection_is_made_anew_at_once(
    queue: AsyncQueue, worker: HandWorker, news: str
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue, **QUICK) as relay,
        proxied(relay.url) as proxy,
        following(job.id, relay=proxy.url(relay.url), silence=600_000) as follower,
    ):
        work = await worker.take()
        await work.say("one ")
        await follower.until_event("1-1")
        proxy.silence()
        await work.say("two")
        await follower.do(news)
        await follower.until_event("1-2")  # the relay does not end the old connection meanwhile
        await work.finish()
        await follower.whole("one two")


async def test_a_page_that_is_offline_says_so_and_is_back_when_it_is_online(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    # A relay that asks for half a minute between connections: only `online` is sooner.
    async with (
        running_relay(queue, reconnect=60.0) as relay,
        proxied(relay.url) as proxy,
        following(job.id, relay=proxy.url(relay.url)) as follower,
    ):
        work = await worker.take()
        await follower.until_event("1-0")
        proxy.go_away()
        await follower.do("offline")
        await follower.until_connected(False)
        await work.say("missed")
        await work.finish()
        proxy.come_back()
        await follower.do("online")
        await follower.whole("missed")


async def test_heartbeats_keep_a_connection_that_has_nothing_to_say(queue: AsyncQueue, worker: HandWorker) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, **QUICK) as relay, proxied(relay.url) as proxy:
        async with following(job.id, relay=proxy.url(relay.url), silence=1_000) as follower:
            await follower.until_joined()
            await asyncio.sleep(2.5)  # nothing but heartbeats
            work = await worker.take()
            await work.finish()
            await follower.whole("")
        assert [m["connected"] for m in follower.script.said if "connected" in m].count(False) == 1, (
            follower.script.said
        )


async def test_a_relay_that_goes_and_another_that_comes_are_one_stream(queue: AsyncQueue, worker: HandWorker) -> None:
    job = await queue.enqueue(SPEC)
    port = free_port()
    async with running_relay(queue, port=port, **QUICK) as relay, following(job.id, relay=relay.url) as follower:
        work = await worker.take()
        await work.say("before ")
        await follower.until_event("1-1")
        relay.stop.set()
        await relay.task
        await follower.until_connected(False)
        await work.say("between ")
        async with running_relay(queue, port=port, **QUICK):
            await follower.until_event("1-2")
            await work.say("after")
            await work.finish()
            await follower.whole("before between after")


@pytest.mark.parametrize("on_takeover", ["restart", "continue"])
async def test_a_worker_that_dies_is_succeeded_and_its_text_is_cleared_or_kept(
    queue: AsyncQueue, worker: HandWorker, on_takeover: str
) -> None:
    job = await queue.enqueue(SPEC, on_takeover=on_takeover)
    async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
        first = await worker.take()
        await first.say("of the first ")
        await follower.until_event("1-1")
        await worker.claims.release(first.claim, b"")
        second = await worker.take()
        second.text = "of the first " if on_takeover == "continue" else ""
        await second.say("of the second")
        await second.finish()
        await follower.whole(second.text)
    assert [event["id"] for event in follower.events] == ["1-0", "1-1", "2-0", "2-1", "2-2"]


async def test_a_real_worker_that_vanishes_mid_stream_is_succeeded_by_another(
    queue: AsyncQueue, start_worker: StartWorker, slow: Provider
) -> None:
    doomed = await start_worker(slow)
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
        await follower.until("event", lambda event: event["type"] == "text_delta")
        await doomed.vanish()
        await start_worker(slow)
        await follower.until("event", lambda event: event["type"] == "meta" and event["attempt"] == 2)
        await follower.whole(TEXT)


async def test_an_iterator_that_begins_late_gets_all_with_what_was_before_merged(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, following(job.id, iterate="late", relay=relay.url) as follower:
        work = await worker.take()
        for n in range(5):
            await work.say(f"{n} ")
            await follower.until_event(f"1-{n + 1}")
        await follower.do("iterate")
        await follower.until("iterating")
        await work.say(ToolCallDelta(index=0, call_id="c", name="f"), "end")
        await work.finish()
        await follower.whole("0 1 2 3 4 end")
    found = [m["iterated"] for m in follower.script.said if "iterated" in m]
    assert len(found) == 2
    assert max(found) < len(follower.events)  # meta, the merged text, …
    assert min(found) == 5  # after the end: meta, text, tool call, text, done


async def test_a_cancel_reaches_the_job_and_the_stream_ends_with_it(
    queue: AsyncQueue, start_worker: StartWorker, slow: Provider
) -> None:
    await start_worker(slow)
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
        await follower.until("event", lambda event: event["type"] == "text_delta")
        await follower.do("cancel")
        await follower.whole()
    [answer] = [m["cancel"] for m in follower.script.said if "cancel" in m]  # before or after the end that it brings
    [result] = [m["done"] for m in follower.script.said if "done" in m]
    assert answer["id"] == job.id
    assert (result["state"], result["finishReason"]) == ("cancelled", "cancelled")


async def test_a_job_that_failed_ends_the_stream_and_says_why(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running_provider(Script(faults=parse_faults("quota"))) as failing:
        await start_worker(failing)
        job = await queue.enqueue(SPEC)
        async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
            result = await follower.until("done")
            await follower.whole("")
    assert (result["state"], result["finishReason"], result["error"]["code"]) == ("failed", "error", "quota")


async def test_close_leaves_nothing_that_keeps_the_process_alive(queue: AsyncQueue) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, following(job.id, relay=relay.url) as follower:
        await follower.until_joined()
        await follower.do("close")
        assert (await follower.ended_by())["code"] == "closed"


async def test_resuming_after_an_id_gives_what_follows_and_after_the_last_one_the_outcome(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("one ", "two")
    await work.finish()
    async with running_relay(queue) as relay:
        async with following(job.id, relay=relay.url, after="1-1") as follower:
            await follower.whole("two")
        async with following(job.id, check=False, relay=relay.url, after="1-3") as follower:
            result = await follower.until("done")
            await follower.whole("")
    assert (result["state"], result["finishReason"]) == ("done", "stop")


async def test_a_cursor_that_is_void_begins_anew(queue: AsyncQueue, worker: HandWorker) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("all of it")
    await work.finish()
    async with running_relay(queue) as relay, following(job.id, relay=relay.url, after="1-99") as follower:
        await follower.until("event", lambda event: event["type"] == "reset")
        await follower.whole("all of it")


async def test_a_job_that_is_not_there_ends_the_following_at_once(queue: AsyncQueue) -> None:
    async with running_relay(queue) as relay, following("0-" + "0" * 27, relay=relay.url) as follower:
        error = await follower.ended_by()
    assert (error["code"], error["status"], error["fatal"]) == ("not_found", 404, True)


async def test_an_api_key_of_ours_is_sent_and_a_wrong_one_is_final(queue: AsyncQueue, worker: HandWorker) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.finish()
    async with running_relay(queue, api_keys=("default=" + "k" * 40,)) as relay:
        async with following(job.id, relay=relay.url, token="k" * 40) as follower:
            await follower.whole("")
        async with following(job.id, relay=relay.url, token="wrong") as follower:
            error = await follower.ended_by()
    assert (error["status"], error["fatal"]) == (401, True)


class Odd:
    """Answers as no real relay can be made to: one answer after the other, and the last one to all that follow."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/interest"):  # it may come at any moment
            return web.json_response({"renew_in": None})
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, web.Response):
            return answer
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        assert isinstance(answer, list)
        for piece in answer:
            await response.write(piece)
            await asyncio.sleep(0.01)
        return response


async def serve_odd(odd: Odd) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", odd.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def frame(event_id: str, kind: str, **fields: object) -> bytes:
    data = orjson.dumps({"v": 1, "job": "j", "id": event_id, "type": kind, **fields})
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), kind.encode(), data)


def refusal(status: int, retry_after: str | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.Response(status=status, text="<html>", headers=headers)


META = frame("1-0", "meta", attempt=1, model="m", provider="p", created=0, metadata={})
DONE = frame("1-2", "done", finish_reason="stop", text_length=2, timings={})
HI = frame("1-1", "text_delta", text="hi")
NOW = b"retry: 10\n\n"


NOT_JSON = b"data: {not json\n\n"
WITH_A_BOM = [b"\xef\xbb\xbf" + NOW, META.replace(b"\n", b"\r\n"), HI.replace(b"\n", b"\r"), DONE]
SPLIT = (NOW + META + HI.replace(b"hi", "é!".encode()) + DONE).replace(b"\n", b"\r\n")
BYTE_BY_BYTE = [SPLIT[at : at + 1] for at in range(len(SPLIT))]


@pytest.mark.parametrize(
    ("answers", "errors"),
    [
        pytest.param([[NOW, META, HI], [NOW, DONE]], [], id="a clean end without done"),
        pytest.param([[NOW, META, NOT_JSON, HI], [NOW, HI, DONE]], ["bad_frame"], id="a frame that is no JSON"),
        pytest.param([[NOW, META, DONE], [NOW, HI, DONE]], ["hole"], id="a hole"),
        pytest.param([[NOW, META, HI, META, HI], [NOW, META, HI, DONE]], [], id="repetitions"),
        pytest.param([WITH_A_BOM], [], id="a BOM, CRLF and CR"),
        pytest.param([BYTE_BY_BYTE], [], id="single bytes"),
        pytest.param([[NOW], refusal(503, "0"), [META, HI, DONE]], ["http_503"], id="503"),
        pytest.param([[NOW], refusal(502), [NOW, META, HI, DONE]], ["http_502"], id="502"),
        pytest.param([[NOW], refusal(200), [NOW, META, HI, DONE]], ["bad_answer"], id="a login page"),
    ],
)
async def test_an_answer_that_is_not_sound_is_asked_for_again_from_the_last_event(
    answers: list[object], errors: list[str]
) -> None:
    odd = Odd(*answers)
    runner, url = await serve_odd(odd)
    try:
        async with following("j", relay=url) as follower:
            await follower.whole()
        assert [m["error"]["code"] for m in follower.script.said if "error" in m] == errors
    finally:
        await runner.cleanup()
    cursors = [request.headers.get("Last-Event-ID") for request in odd.requests]
    assert cursors[0] is None
    assert len(cursors) == len(answers)


async def test_a_job_whose_status_is_a_login_page_is_told_of_and_asked_for_again() -> None:
    odd = Odd(refusal(200), refusal(200), refusal(404))
    runner, url = await serve_odd(odd)
    try:
        async with following("j", relay=url, pusher=True) as follower:
            await follower.ended_by()
        errors = [m["error"] for m in follower.script.said if "error" in m]
        assert [(error["code"], error["fatal"]) for error in errors] == [
            ("bad_answer", False),
            ("bad_answer", False),
            ("http_404", True),
        ]
    finally:
        await runner.cleanup()


async def test_an_outage_of_the_relay_is_told_once_and_the_next_one_again(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    port = free_port()

    async def outage(follower: Follower) -> None:
        async with Nobody(port) as nobody:
            for _ in range(3):
                await nobody.called()
        error = await follower.until("error")
        assert (error["code"], error["status"], error["fatal"]) == ("network", None, False)
        assert str(port) in error["message"]

    async with following(job.id, relay=f"http://127.0.0.1:{port}") as follower:
        await outage(follower)
        async with running_relay(queue, port=port, **QUICK):
            work = await worker.take()
            await work.say("one ")
            await follower.until_event("1-1")
        await outage(follower)
        async with running_relay(queue, port=port, **QUICK):
            await work.say("two")
            await work.finish()
            await follower.whole("one two")
    assert [m["error"]["code"] for m in follower.script.said if "error" in m] == ["network", "network"]


async def test_a_relay_that_cannot_be_reached_is_told_over_pusher_too() -> None:
    async with (
        Nobody() as nobody,
        following("j", relay=nobody.url, pusher=True) as follower,
    ):
        error = await follower.until("error")
        assert (error["code"], error["fatal"]) == ("network", False)
        for _ in range(3):
            await nobody.called()
        await follower.do("close")
        await follower.ended_by()
    assert len([m for m in follower.script.said if "error" in m]) == 1


async def test_a_retry_after_is_kept() -> None:
    odd = Odd(refusal(429, "1"), [META, HI, DONE])
    runner, url = await serve_odd(odd)
    clock = asyncio.get_running_loop().time
    try:
        async with following("j", relay=url) as follower:
            await follower.until("error")
            refused = clock()
            await follower.whole("hi")
            assert clock() - refused > 0.8
    finally:
        await runner.cleanup()


async def test_a_hole_that_every_connection_shows_is_told_and_passed() -> None:
    odd = Odd([NOW, META, DONE])
    runner, url = await serve_odd(odd)
    try:
        async with following("j", check=False, relay=url) as follower:
            found = await follower.whole("")
    finally:
        await runner.cleanup()
    assert found["gaps"] == [{"after": "1-0", "before": "1-2"}]
    assert len(odd.requests) == 4


async def test_a_job_that_redis_has_lost_ends_the_following_at_once_with_that_code(
    queue: AsyncQueue, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafan.broker.hub.AUDIT_INTERVAL", 0.1)
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, **QUICK) as relay, following(job.id, relay=relay.url) as follower:
        await (await worker.take()).say("so far")
        await follower.until_event("1-1")
        await queue.connections.commands.flushall()
        error = await follower.ended_by()
    assert (error["code"], error.get("status"), error["fatal"]) == ("job_gone", None, True)  # not a 404 afterwards
    assert [m["state"] for m in follower.script.said if "state" in m][-1] == "closed"


async def test_a_job_that_is_unknown_after_a_lost_connection_was_there_and_is_lost(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue, **QUICK) as relay,
        proxied(relay.url) as proxy,
        following(job.id, relay=proxy.url(relay.url)) as follower,
    ):
        await (await worker.take()).say("so far")
        await follower.until_event("1-1")
        await queue.connections.commands.flushall()
        proxy.cut()
        error = await follower.ended_by()
    assert (error["code"], error["status"], error["fatal"]) == ("job_gone", 404, True)
