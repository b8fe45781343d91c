"""What a hostile or a clumsy client can send, by every door: it costs its sender a request, and nobody else a thing."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import orjson
import pytest

from deltafan.broker.dead import list_dead
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.errors import JobFailed, JobNotFound, ValidationError
from deltafan.events import Done, Event, EventId, TextDelta, ToolResult, Usage
from deltafan.llm import Request
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.tools import tool
from deltafan.sse import Decoder
from tests.conftest import StartWorker
from tests.e2e.cli_kit import cli
from tests.e2e.relay_kit import SPEC, hand_worker, running_relay
from tests.oracle import check_whole
from tests.unit.llm.server import HELLO, answering, serving, settings

QUEUE = "deltafan:{0}:queue:default"


async def _text(job: AsyncJob) -> str:
    return (await job.result(timeout=20)).text


# Another's data


async def test_a_job_of_another_tenant_cannot_be_seen_or_cancelled_by_its_place_in_the_queue(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    theirs = await queue.for_tenant("acme").enqueue(SPEC)
    [(entry, _)] = await queue.connections.commands.xrange(f"{QUEUE}:normal")
    guessed = queue.job(f"0-default-normal-{entry.decode()}")
    with pytest.raises(JobNotFound):
        await guessed.status()
    with pytest.raises(JobNotFound):
        await guessed.cancel()
    await start_worker()
    assert await _text(theirs)


async def test_a_job_added_by_hand_answers_to_its_own_id_only(queue: AsyncQueue) -> None:
    entry = (await queue.connections.commands.xadd(f"{QUEUE}:normal", {"job": orjson.dumps(SPEC)})).decode()
    with pytest.raises(JobNotFound):
        await queue.job(f"00-default-normal-{entry}").cancel()
    assert (await queue.job(f"0-default-normal-{entry}").cancel()).state == "cancelled"


async def test_a_job_added_by_hand_under_the_id_of_another_leaves_that_one_alone(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    theirs = await queue.for_tenant("acme").enqueue(model="m", prompt="mine")
    redis = queue.connections.commands
    for spec in ({"id": theirs.id, "model": "m", "prompt": "yours"}, {"id": theirs.id, "model": "m"}):
        await redis.xadd(f"{QUEUE}:high", {"job": orjson.dumps(spec)})
    await redis.xadd(f"{QUEUE}:takeover", {"id": theirs.id, "model": "m"})
    await start_worker()
    assert "“mine”" in await _text(theirs)
    status = await theirs.status()
    assert (status.tenant, status.attempt, status.failures) == ("acme", 1, 0)
    check_whole([event async for event in theirs.events()])


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "x" * 65])
async def test_a_tenant_without_a_name_is_refused(redis_url: str, name: str) -> None:
    with pytest.raises(ValidationError, match="tenant: must be 1 to 64"):
        AsyncQueue(redis_url, tenant=name)
    async with AsyncQueue(redis_url) as queue:
        with pytest.raises(ValidationError, match="tenant: must be 1 to 64"):
            queue.for_tenant(name)


async def test_the_errors_of_attempts_do_not_name_the_worker(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with hand_worker(queue.settings, "host-of-ours") as hand:
        job = await queue.enqueue(SPEC)
        await hand.take()  # and no heartbeat
        await start_worker()
        assert await _text(job)
    [error] = (await job.status()).attempt_errors
    assert error["code"] == "worker_lost"
    assert b"host-of-ours" not in orjson.dumps((await job.status()).to_dict())


# Too much


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":[%b0]}]}' % (b"0," * 480_000),
        b'{"model":"m","messages":[{"role":"assistant","tool_calls":[%b0]}]}' % (b"0," * 480_000),
        b'{"model":"m","messages":[%b0]}' % (b"0," * 9_999),
        b'{"model":"m","prompt":"x"%b}' % b"".join(b',"f%d":0' % n for n in range(80_000)),
    ],
    ids=["parts", "calls", "messages", "fields"],
)
async def test_half_a_million_wrong_fields_are_told_in_a_moment(
    queue: AsyncQueue, http: aiohttp.ClientSession, body: bytes
) -> None:
    """The time limit of the tests decides: to compare all findings with each other would take hours."""
    async with running_relay(queue) as relay:
        headers = {"Content-Type": "application/json"}
        async with http.post(f"{relay.url}/v1/jobs", data=body, headers=headers) as response:
            assert response.status == 422
            assert 1 <= len((await response.json())["error"]["fields"]) <= 20


async def test_a_list_of_jobs_reads_no_more_metadata_than_it_shows(queue: AsyncQueue) -> None:
    redis, jobs = queue.connections.commands, 20
    ids = [(await queue.enqueue(**SPEC, metadata={"blob": "x" * 600_000})).id for _ in range(jobs)]
    before = (await redis.info("stats"))["total_net_output_bytes"]
    assert len((await queue.jobs(limit=1)).jobs) == 1
    assert (await queue.jobs(state="done")).jobs == ()
    assert (await redis.info("stats"))["total_net_output_bytes"] - before < 1_000_000
    seen: list[str] = []
    page = await queue.jobs(limit=500)
    while True:
        assert len(page.jobs) <= 8  # 4 MiB of metadata
        seen += [job.id for job in page.jobs]
        if page.cursor is None:
            break
        page = await queue.jobs(limit=500, cursor=page.cursor)
    assert sorted(seen) == sorted(ids)


async def test_a_snapshot_of_a_long_log_is_written_as_it_is_read_and_cut_off_where_that_fails(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    async with hand_worker(queue.settings) as hand, running_relay(queue) as relay:
        job = await queue.enqueue(SPEC)
        work = await hand.take()
        for _ in range(30):
            await work.say(*(f"{n} " for n in range(100)))
        url, headers = f"{relay.url}/v1/jobs/{job.id}/events", {"Accept": "application/json"}
        async with http.get(url, headers=headers) as response:
            assert "Content-Length" not in response.headers
            snapshot = await response.json()
        assert "".join(event.get("text", "") for event in snapshot["events"]) == work.text
        assert (snapshot["state"], snapshot["last_id"]) == ("running", "1-3000")
        await queue.connections.commands.xadd(f"deltafan:{{0}}:log:{job.id}", {"odd": "entry"}, id="1-3001")
        async with http.get(url, headers=headers) as response:
            with pytest.raises(aiohttp.ClientError):
                await response.read()


async def test_ten_thousand_messages_go_to_the_provider_without_a_walk_through_each() -> None:
    """Counted, not timed: what is done for each message holds up every other stream of the worker."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    async with serving(answering(*HELLO)) as url, OpenAICompletions(settings(url)) as completions:
        counts: list[int] = []
        for number in (1, 1, 2000):  # the first makes the client
            request = Request(model="m", messages=[{"role": "user", "content": "x"}] * number)
            calls = 0
            sys.setprofile(count)
            try:
                async for _ in completions.stream(request):
                    pass
            finally:
                sys.setprofile(None)
            counts.append(calls)
    assert counts[2] - counts[1] < 10 * 2000


# Odd jobs


class Odd:
    """A ring of an operator's own that gives what no wire can carry: nested deeper than JSON goes here."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        yield TextDelta("said ")
        if request.model == "odd":
            deep: Any = 1
            for _ in range(400):
                deep = [deep]
            yield ToolResult("c", "f", deep)
        yield Usage(1, 1, 2, source="reported")
        yield Done("stop")


async def test_an_event_that_cannot_be_written_fails_its_own_job_and_no_other(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker(services={"completions": Odd()})
    odd = await queue.enqueue(model="odd", prompt="x", max_attempts=2)
    even = await queue.enqueue(model="even", prompt="x")
    assert await _text(even) == "said "
    with pytest.raises(JobFailed):
        await odd.result(timeout=30)
    assert (await odd.status()).failures <= 2
    check_whole([event async for event in odd.events()])


def _tool_call(name: str) -> dict[str, Any]:
    call = {"index": 0, "id": "c", "function": {"name": name, "arguments": "{}"}}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}


async def _use(function: Any, queue: AsyncQueue, start_worker: StartWorker) -> ToolResult:
    """What a job is told of a call of this tool."""

    async def provider(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        turns = [message["role"] for message in (await request.json())["messages"]]
        return await (answering(*HELLO) if "tool" in turns else answering(_tool_call(function.__name__)))(request)

    async with serving(provider) as url:
        named = tool(function, timeout=0.2)
        await start_worker(type("Address", (), {"base_url": url}), services={"tools": {named.name: named}})
        job = await queue.enqueue(model="m", prompt="x", tools=[named.name], max_attempts=1)
        events = [event async for event in job.events()]
        assert check_whole(events).text == "Hello"
    [result] = [event for event in events if isinstance(event, ToolResult)]
    return result


async def test_a_result_as_deep_as_json_goes_is_an_error_of_its_tool(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    def deep() -> object:
        result: object = 1
        for _ in range(254):
            result = [result]
        return result

    assert "ecursion" in ((await _use(deep, queue, start_worker)).error or "")


async def test_a_tool_that_would_end_the_process_is_an_error(queue: AsyncQueue, start_worker: StartWorker) -> None:
    def leave() -> None:
        sys.exit(3)

    assert "SystemExit(3)" in ((await _use(leave, queue, start_worker)).error or "")


async def test_tools_that_hang_take_no_thread_of_the_loops_pool(queue: AsyncQueue, start_worker: StartWorker) -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(30)

    try:
        assert "longer than" in ((await _use(hang, queue, start_worker)).error or "")
        pool = [thread.name for thread in threading.enumerate() if "asyncio" in thread.name]
        assert "deltafan-tool" in [thread.name for thread in threading.enumerate()]
        assert "deltafan-tool" not in pool
    finally:
        release.set()


@pytest.mark.parametrize("tools", [5, True, {"a": 1}])
async def test_tools_that_are_no_list_are_a_bad_request(
    queue: AsyncQueue, start_worker: StartWorker, tools: object
) -> None:
    def noop() -> None: ...

    await start_worker(services={"tools": {"noop": tool(noop)}})
    job = await queue.enqueue(model="m", prompt="x", params={"tools": tools}, tools=["noop"])
    with pytest.raises(JobFailed, match=r"params\.tools: must be a list"):
        await job.result(timeout=20)


async def test_a_provider_that_asks_for_centuries_is_given_a_day(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async def centuries(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        await request.read()
        return aiohttp.web.json_response({}, status=429, headers={"Retry-After": "1e308"})

    async with serving(centuries) as url:
        await start_worker(type("Address", (), {"base_url": url}))
        job = await queue.enqueue(SPEC)
        async for event in job.events():
            if event.type == "error":
                break
    redis = queue.connections.commands
    [(_, due)] = await redis.zrange("deltafan:{0}:delayed:default", 0, -1, withscores=True)
    assert due / 1000 - (await redis.time())[0] < 86_410


# Odd cursors


async def test_a_cursor_ahead_of_the_log_gets_everything_and_disturbs_nobody(queue: AsyncQueue) -> None:
    redis = queue.connections.commands
    async with hand_worker(queue.settings) as hand:
        job = await queue.enqueue(SPEC)
        work = await hand.take()
        await work.say("a", "b")
        made_up = job.events("1-999999")
        assert (await anext(made_up)).id == EventId(1, 0)
        frames = job.sse("7-0")
        (first,) = Decoder().feed(await anext(frames))
        assert (first.event, orjson.loads(first.data)["reason"]) == ("reset", "cursor_ahead")
        other = job.events()
        assert [str((await anext(other)).id) for _ in range(2)] == ["1-0", "1-2"]
        before = (await redis.info("commandstats"))["cmdstat_xrange"]["calls"]
        await work.say("c")
        await work.finish()
        assert [str(event.id) async for event in other] == ["1-3", "1-4"]
        assert [str(event.id) async for event in made_up] == ["1-2", "1-3", "1-4"]
        assert (await redis.info("commandstats"))["cmdstat_xrange"]["calls"] - before < 20
        await frames.aclose()
    assert [str(event.id) async for event in job.events("9-0")] == ["1-0", "1-3", "1-4"]


async def test_a_feed_does_not_begin_where_a_made_up_cursor_says(queue: AsyncQueue) -> None:
    """Below the check of cursors: a log that has lost its tail has readers that are ahead of it."""

    class Reader:
        def __init__(self) -> None:
            self.ids: list[str] = []

        def live(self, entry: Any) -> None:
            self.ids.append(str(entry.id))

        def gone(self) -> None: ...

        async def replay(self, entries: list[Any]) -> None:
            self.ids += [str(entry.id) for entry in entries]

    hub = await queue.hub()
    async with hand_worker(queue.settings) as hand:
        job = await queue.enqueue(SPEC)
        work = await hand.take()
        await work.say("a", "b")
        async with hub.feed(job.id) as feed:
            ahead, honest = Reader(), Reader()
            await feed.join(EventId(1, 999), ahead.replay, ahead)
            await feed.join(EventId(1, 1), honest.replay, honest)
            await work.say("c")
            await work.finish()
            async with asyncio.timeout(10):
                while honest.ids[-1] != "1-4":
                    await asyncio.sleep(0.01)
    assert honest.ids == ["1-2", "1-3", "1-4"]
    assert ahead.ids == []


# Keys of another type, entries that no enqueue of ours made


async def test_keys_of_another_type_cost_their_own_queue_and_not_the_worker(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    redis = queue.connections.commands
    worker = await start_worker(queues=("other", "default"))
    for key in (f"{QUEUE}:low", "deltafan:{0}:queue:other:takeover", "deltafan:{0}:delayed:other"):
        await redis.delete(key)
        await redis.set(key, "not ours")
    assert await _text(await queue.enqueue(SPEC))
    assert await _text(await queue.enqueue(**SPEC, delay=0.1))
    assert not worker.task.done()


async def test_a_worker_that_cannot_start_for_a_key_of_another_type_names_it(redis_url: str, queue: AsyncQueue) -> None:
    await queue.connections.commands.set(f"{QUEUE}:low", "not ours")
    ended = await cli("worker", REDIS_URL=redis_url)
    assert ended.code == 2
    assert f"{QUEUE}:low is not a stream" in ended.err


async def test_names_that_are_no_text_do_not_hold_up_the_delayed(queue: AsyncQueue, start_worker: StartWorker) -> None:
    redis = queue.connections.commands
    for key in ("delayed:default", "deadlines"):
        await redis.zadd(f"deltafan:{{0}}:{key}", {bytes([0xFF, n]): 0 for n in range(250)})
    await redis.zadd("deltafan:{0}:expiries", {b"\xff \xff": 0})
    worker = await start_worker()
    assert await _text(await queue.enqueue(**SPEC, delay=0.1))
    expired = await queue.enqueue(**SPEC, delay=60, expires_in=0.1)
    with pytest.raises(JobFailed, match="expired"):
        await expired.result(timeout=20)
    assert not worker.task.done()
    assert not await redis.zcard("deltafan:{0}:delayed:default")


async def test_an_entry_from_the_future_was_made_now(queue: AsyncQueue, start_worker: StartWorker) -> None:
    redis = queue.connections.commands
    entry = (await redis.xadd(f"{QUEUE}:normal", {"job": orjson.dumps(SPEC)}, id="99999999999999-0")).decode()
    await start_worker()
    job = queue.job(f"0-default-normal-{entry}")
    while not (await job.status()).has_ended:
        await asyncio.sleep(0.01)
    assert (await job.status()).created <= (await redis.time())[0] * 1000 + 1000
    page = await queue.jobs(limit=1)
    assert page.jobs[0].timings["queued"] >= 0


# The command line


async def test_names_that_look_like_markup_are_shown_as_they_are(redis_url: str, queue: AsyncQueue) -> None:
    redis = queue.connections.commands
    await queue.enqueue(model="[/b]", prompt="x")
    letter = {"id": "0-[/b]", "tenant": "default", "reason": "[/b]", "errors": '[{"message":"[/red]"}]', "died": 1}
    await redis.xadd("deltafan:{0}:dead:default", letter)
    listed = await cli("jobs", REDIS_URL=redis_url)
    assert (listed.code, "[/b]" in listed.out) == (0, True)
    dead = await cli("dead", "list", REDIS_URL=redis_url)
    assert (dead.code, "[/b]: [/red]" in dead.out) == (0, True)
    assert len(await list_dead(redis, 1, "default")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dead", "list", "--queue", "\udcff"], "Invalid value for '--queue'"),
        (["dead", "drop", "--all", "--queue", "a:b"], "Invalid value for '--queue'"),
        (["relay", "--host", "a..b", "--api-keys", "long-enough"], "cannot listen on a..b"),
        (["provider", "--host", "a..b"], "cannot listen on a..b"),
        (["enqueue", "--messages", "/dev/zero"], "at most 1,048,576 bytes"),
        (["jobs", "--redis-url", "redis://127.0.0.1:1?decode_responses=1"], "option 'decode_responses' is not one of"),
        (["jobs", "--redis-url", "redis://127.0.0.1:1?foo=hunter2"], "option 'foo' is not one of"),
        (["jobs", "--redis-url", "redis://:hun/ter2@127.0.0.1:1"], "'redis://:***@127.0.0.1:1' is not usable: a / ? #"),
        (["jobs", "--redis-url", "rediss://127.0.0.1:1?ssl_cert_reqs=odd"], "is not usable: Invalid SSL"),
        (["jobs", "--redis-url", "unix:///nowhere/at/all"], "Redis cannot be reached"),
    ],
    ids=lambda value: " ".join(value).encode(errors="replace").decode() if isinstance(value, list) else "",
)
async def test_an_odd_argument_is_refused_in_a_line_and_without_secrets(
    redis_url: str, arguments: list[str], message: str
) -> None:
    ended = await cli(*arguments, REDIS_URL=redis_url)
    assert ended.code in (1, 2)
    assert message in " ".join(ended.err.split())
    assert "hun" not in ended.err
    assert ended.out == ""
