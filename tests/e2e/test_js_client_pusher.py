"""deltafan.js over Pusher: what the way loses, repeats, reorders or cuts up comes out whole and in order."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.proxy import proxied
from deltafan.devserver.pusher import PusherEmulator
from deltafan.events import ToolCallDelta, ToolResult
from tests.e2e.js_client_kit import Follower, Nobody, Publisher, chunks, following, merged, split
from tests.e2e.relay_kit import SPEC, HandWorker, Work, running_relay
from tests.js_kit import needs_node

pytestmark = needs_node


def event_of(job: str, event_id: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "job": job, "id": event_id, "type": kind, **fields}


async def live(work: Work, follower: Follower) -> None:
    """Say something only in the log, and see it come, twice: what reads it but once does not see the other."""
    for _ in range(2):
        [event] = await work.say("live ")
        await follower.until_event(orjson.loads(event)["id"])


@pytest.fixture
def publisher(emulator: PusherEmulator) -> Publisher:
    return Publisher(emulator, "a-channel")


async def test_events_come_live_and_what_was_before_the_subscription_comes_from_the_relay(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    await work.say("be", "fore ")  # nobody listens on Pusher yet
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_event("1-2")
        await publisher.send(*await work.say("live"))
        await follower.until_event("1-3")
        await publisher.send(await work.finish())
        await follower.whole("before live")
    assert [event.get("first") for event in follower.events] == [None, "1-1", None, None]


async def test_holes_are_read_from_the_relay_and_duplicates_dropped(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        first = await work.say("a")
        await publisher.send(work.claim.meta, *first, *first)
        await follower.until_event("1-1")
        await work.say("b", "c")  # lost on the way
        await publisher.send(*await work.say("d"), *first)
        await follower.until_event("1-4")
        await publisher.send(await work.finish())
        await follower.whole("abcd")
    assert [event["id"] for event in follower.events if event["type"] == "text_delta"] == ["1-1", "1-4"]
    assert follower.events[2]["first"] == "1-2"


async def test_any_order_with_losses_and_repetitions_comes_out_as_the_log_has_it(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    fate = random.Random(3)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=2_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        events = [work.claim.meta]
        for n in range(60):
            events += await work.say(f"{n} ")
        events.append(await work.finish())
        shaken = [event for event in events if fate.random() > 0.2] + fate.choices(events, k=15)
        shaken.sort(key=lambda event: events.index(event) + fate.uniform(0, 12))
        await publisher.send(*shaken)
        await follower.whole(work.text)


async def test_a_zombie_of_an_older_attempt_is_not_heard_and_a_restart_clears_the_text(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("old "))
        await follower.until_event("1-1")
        zombie = event_of(job.id, "1-2", "text_delta", text="zombie")
        meta = orjson.loads(work.claim.meta) | {"id": "2-0", "attempt": 2, "restart": True}
        await publisher.send(meta, zombie, event_of(job.id, "2-1", "text_delta", text="new"), zombie)
        await publisher.send(event_of(job.id, "2-2", "done", finish_reason="stop", text_length=3, timings={}))
        await follower.whole("new")


async def test_an_attempt_that_continues_is_not_believed_before_the_end_of_the_one_before_is_read(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    """Only meta and what follows reach Pusher: the tail of the first attempt was lost with its worker."""
    job = await queue.enqueue(SPEC, on_takeover="continue")
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("one "))
        await follower.until_event("1-1")
        await work.say("lost ")  # in the log, but its worker dies before Pusher gets it
        await worker.claims.release(work.claim, b"")
        second = await worker.take()
        assert orjson.loads(second.claim.meta)["continued"]
        second.text = work.text
        await publisher.send(second.claim.meta)
        await follower.until_event("2-0")
        await publisher.send(*await second.say("two"), await second.finish())
        await follower.whole("one lost two")


async def test_a_model_that_goes_on_in_mid_attempt_is_believed_at_once(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    """Its id follows the last one: nothing can be missing, and the log (which has none of it here) is not asked."""
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("one "))
        meta = orjson.loads(work.claim.meta) | {"id": "1-2", "continued": True}
        await publisher.send(meta, event_of(job.id, "1-3", "text_delta", text="two"))
        await publisher.send(event_of(job.id, "1-4", "done", finish_reason="stop", text_length=7, timings={}))
        await follower.whole("one two")


async def test_split_deltas_and_chunked_events_come_out_whole_in_whatever_order_their_parts_come(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        [text] = await work.say("long and longer")
        [call] = await work.say(ToolCallDelta(index=0, call_id="c", name="f", arguments="{1234567890}"))
        [result] = await work.say(ToolResult(call_id="c", name="f", result={"rows": ["\u00e4\U0001f600"] * 20}))
        texts, calls, results = split(text, "text", 4, 7), split(call, "arguments", 5), chunks(result, 50)
        for part in calls[1:]:
            del part["call_id"], part["name"]
        assert len(results) > 3
        await publisher.send(work.claim.meta, texts[1], texts[0], texts[0], texts[2])
        await publisher.send(calls[1], results[-1], *results[1:-1], calls[0], results[0])
        await follower.until_event("1-3")
        await publisher.send(await work.finish())
        await follower.whole("long and longer")
    seen = [event for event in follower.events if event["type"] != "meta"]
    assert seen[:3] == [orjson.loads(event) for event in (text, call, result)]


async def test_an_event_of_which_a_part_is_lost_is_read_from_the_relay(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        [text] = await work.say("long and longer")
        await publisher.send(work.claim.meta, *split(text, "text", 4, 7)[:2])
        await follower.until_event("1-1")
        [result] = await work.say(ToolResult(call_id="c", name="f", result="x" * 500))
        await publisher.send(*chunks(result, 100)[1:])
        await follower.until_event("1-2")
        await publisher.send(await work.finish())
        await follower.whole("long and longer")


@pytest.mark.parametrize("has_relay", [True, False], ids=["with a relay", "alone"])
async def test_a_successor_that_sends_a_merged_run_again_adds_only_what_is_new(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher, has_relay: bool
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        url = relay.url if has_relay else None
        async with following(job.id, relay=url, pusher=publisher.options, silence=600_000) as follower:
            await follower.until_joined()
            work = await worker.take()
            pieces = [*await work.say("a\U0001f600"), *await work.say("b"), *await work.say("c"), *await work.say("d")]
            await publisher.send(work.claim.meta, *pieces[:3])
            await follower.until_event("1-3")
            await publisher.send(work.claim.meta, merged(pieces[1:]), await work.finish())
            await follower.whole("a\U0001f600bcd")
    assert [event["text"] for event in follower.events if event["type"] == "text_delta"][-1] == "d"


async def test_without_a_relay_a_hole_is_told_and_the_text_goes_on(worker: HandWorker, publisher: Publisher) -> None:
    async with following("a-job", check=False, relay=None, pusher=publisher.options) as follower:
        await follower.until_joined()
        meta = event_of("a-job", "1-0", "meta", attempt=1, model="m", provider="p", created=0, metadata={})
        await publisher.send(meta, event_of("a-job", "1-1", "text_delta", text="one "))
        await publisher.send(event_of("a-job", "1-3", "text_delta", text="three"))
        error = await follower.until("error")
        assert (error["code"], error["fatal"]) == ("gap", False)
        await publisher.send(event_of("a-job", "1-4", "done", finish_reason="stop", text_length=13, timings={}))
        found = await follower.whole("one three")
    assert found["gaps"] == [{"after": "1-1", "before": "1-3"}]


async def test_without_a_relay_a_lost_end_of_an_attempt_that_another_continues_is_told(publisher: Publisher) -> None:
    async with following("a-job", check=False, relay=None, pusher=publisher.options) as follower:
        await follower.until_joined()
        meta = event_of("a-job", "1-0", "meta", attempt=1, model="m", provider="p", created=0, metadata={})
        await publisher.send(meta, event_of("a-job", "1-1", "text_delta", text="one "))
        await publisher.send(meta | {"id": "2-0", "attempt": 2, "continued": True})
        await publisher.send(event_of("a-job", "2-1", "done", finish_reason="stop", text_length=9, timings={}))
        found = await follower.whole("one ")
    assert found["gaps"] == [{"after": "2-0", "before": "2-1"}]


async def test_what_is_not_an_event_of_this_job_is_not_heard(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta)
        await publisher.send(event_of("another", "1-1", "text_delta", text="no"))
        await publisher.send(event_of(job.id, "one", "text_delta", text="no"))
        await publisher.send(event_of(job.id, "1-1", "text_delta", text=7))
        await publisher.send(
            {"type": "text_delta"}, {"type": "chunk", "job": job.id, "id": "1-1", "part": 9, "parts": 2}
        )
        await publisher.send(event_of(job.id, "1-1", "client-text_delta", text="no"))
        await publisher.send(*await work.say("yes"), await work.finish())
        await follower.whole("yes")


async def test_a_done_that_pusher_lost_is_found_after_silence(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=500) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("all"))
        await follower.until_event("1-1")
        await work.finish()
        await follower.whole("all")


async def test_while_pusher_cannot_be_reached_the_relays_own_stream_stands_in(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with Nobody() as nobody, running_relay(queue) as relay:
        nowhere = publisher.options | {"port": nobody.port}
        async with following(job.id, patience=4_000, relay=relay.url, pusher=nowhere) as follower:
            await follower.until_connected()
            work = await worker.take()
            for _ in range(3):  # tries of Pusher's while the other way goes on
                await nobody.called()
                await live(work, follower)
            await work.finish()
            await follower.whole(work.text)
    assert all(m["connected"] for m in follower.script.said if m.get("state") == "running")


async def test_when_pusher_goes_the_relays_own_stream_stands_in_until_pusher_is_back(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher, emulator: PusherEmulator
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, proxied(emulator.url) as proxy, proxied(relay.url) as way:
        where = publisher.options | {"port": proxy.port}
        async with following(job.id, patience=4_000, relay=way.url(relay.url), pusher=where) as follower:
            await follower.until_joined()
            work = await worker.take()
            await publisher.send(work.claim.meta, *await work.say("by Pusher "))
            await follower.until_event("1-1")
            proxy.go_away()
            await follower.until_connected(False)
            await follower.until_connected()
            await live(work, follower)
            proxy.come_back()
            await follower.do("online")
            await publisher.subscribed()
            way.go_away()  # from here on nothing can come but by Pusher
            tail = [event_of(job.id, f"1-{work.seq}", "text_delta", text="and again")]
            length = len(work.text) + len("and again")
            done = event_of(job.id, f"1-{work.seq + 1}", "done", finish_reason="stop", text_length=length, timings={})
            await publisher.send(*tail, done)
            await follower.whole(f"{work.text}and again")


@pytest.mark.parametrize("code", [None, 4100, 4200], ids=["cut", "4100", "4200"])
async def test_a_lost_connection_is_made_anew_and_what_passed_meanwhile_is_read(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher, emulator: PusherEmulator, code: int | None
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta)
        await follower.until_event("1-0")
        emulator.disconnect_all(code)
        await follower.until_connected(False)
        await work.say("missed ")
        await follower.until_event("1-1")
        await publisher.subscribed()
        await publisher.send(*await work.say("live"), await work.finish())
        await follower.whole("missed live")


async def test_codes_that_forbid_to_come_back_end_the_following_where_there_is_no_relay(
    publisher: Publisher, emulator: PusherEmulator
) -> None:
    wrong = publisher.options | {"key": "no-such-key"}
    async with following("a-job", relay=None, pusher=wrong) as follower:
        error = await follower.ended_by()
    assert (error["code"], error["status"], error["fatal"]) == ("pusher", 4001, True)
    async with following("a-job", relay=None, pusher=publisher.options) as follower:
        await follower.until_joined()
        emulator.disconnect_all(4003)
        error = await follower.ended_by()
    assert (error["code"], error["status"], error["fatal"]) == ("pusher", 4003, True)


@pytest.mark.parametrize("code", [4001, 4003], ids=["at first", "in mid-answer"])
async def test_codes_that_forbid_to_come_back_are_told_and_the_relays_own_stream_stands_in(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher, emulator: PusherEmulator, code: int
) -> None:
    job = await queue.enqueue(SPEC)
    where = publisher.options | ({"key": "no-such-key"} if code == 4001 else {})
    async with (
        running_relay(queue) as relay,
        following(job.id, patience=4_000, relay=relay.url, pusher=where) as follower,
    ):
        if code != 4001:
            await follower.until_joined()
            emulator.disconnect_all(code)
        error = await follower.until("error")
        assert (error["code"], error["status"], error["fatal"]) == ("pusher", code, False)
        await follower.until_connected()
        work = await worker.take()
        await live(work, follower)
        await work.finish()
        await follower.whole(work.text)
    assert len([m for m in follower.script.said if "error" in m]) == 1


async def test_an_encrypted_channel_asks_for_pusher_js(queue: AsyncQueue, publisher: Publisher) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        secret = publisher.options | {"channel": "private-encrypted-x"}
        async with following(job.id, relay=relay.url, pusher=secret) as follower:
            error = await follower.ended_by()
    assert error["code"] == "encrypted_channel"
    assert "pusher-js" in error["message"]


async def test_an_instance_of_pusher_js_is_used_instead_of_the_built_in_client(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher, emulator: PusherEmulator
) -> None:
    job = await queue.enqueue(SPEC)
    place = {"wsHost": emulator.host, "wsPort": emulator.port, "forceTLS": False, "enabledTransports": ["ws"]}
    client = {"key": emulator.key, "options": place | {"cluster": "", "disableStats": True}}
    options = {"client": client, "channel": publisher.channel}
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=options, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("a"))
        await follower.until_event("1-1")
        await work.say("b")  # lost
        await publisher.send(*await work.say("c"))
        await follower.until_event("1-3")
        emulator.disconnect_all()
        await follower.until_connected(False)
        await work.say("d")
        await follower.until_event("1-4")
        await publisher.send(await work.finish())
        await follower.whole("abcd")


async def test_close_leaves_nothing_that_keeps_the_process_alive(queue: AsyncQueue, publisher: Publisher) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options) as follower,
    ):
        await follower.until_joined()
        await follower.do("close")
        assert (await follower.ended_by())["code"] == "closed"


async def test_a_job_that_the_relay_no_longer_knows_after_its_first_events_is_lost(
    queue: AsyncQueue, worker: HandWorker, publisher: Publisher
) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue) as relay,
        following(job.id, relay=relay.url, pusher=publisher.options, silence=500) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("so far"))
        await follower.until_event("1-1")
        await queue.connections.commands.flushall()
        error = await follower.ended_by()
    assert (error["code"], error["fatal"]) == ("job_gone", True)
