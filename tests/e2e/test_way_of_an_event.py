"""The whole way of an event, from enqueue to followers."""

from __future__ import annotations

import asyncio

import orjson
import pytest
import redis.asyncio

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Echo, Provider, Script, Text, ToolCall, running
from deltafan.errors import ConflictError, JobFailed, JobNotFound, LogExpired, QueueFull, ValidationError
from deltafan.events import Event, EventId, Meta, ReasoningDelta, TextDelta, Usage
from deltafan.job import parse_spec
from deltafan.settings import JobLimits
from deltafan.sse import Decoder
from deltafan.wire import decode, encode
from tests.conftest import StartWorker
from tests.oracle import check_whole


async def _all(queue: AsyncQueue, job_id: str, after: str | None = None) -> list[Event]:
    return [event async for event in queue.job(job_id).events(after)]


async def test_a_prompt_streams_to_its_follower(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="gpt-5", prompt="hello", metadata={"user": 7})
    events = await _all(queue, job.id)
    transcript = check_whole(events, provider.requests[-1].text)
    meta = events[0]
    assert isinstance(meta, Meta)
    assert (meta.model, meta.provider, meta.attempt, meta.metadata) == ("gpt-5", "openai", 1, {"user": 7})
    assert not meta.restart
    assert not meta.continued
    status = await job.status()
    assert (status.state, status.finish_reason, status.attempt) == ("done", "stop", 1)
    assert status.text_length == len(transcript.text)
    assert status.usage is not None
    assert status.usage["source"] == "reported"
    assert status.usage["completion_tokens"] > 0
    assert status.usage["cost_usd"] > 0
    assert set(status.timings) == {"queued", "first_token", "total"}
    assert status.last_id == str(events[-1].id)


async def test_every_follower_sees_the_same_whenever_it_joins(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text("one two three four five " * 10), rate=400, chunk_size=2)) as paced:
        await start_worker(paced)
        job = await queue.enqueue(model="m", prompt="x")
        joined: list[tuple[EventId | None, asyncio.Task[list[Event]]]] = []
        async for event in job.events():
            for after in (None, event.id):
                follower = asyncio.create_task(_all(queue, job.id, str(after) if after else None))
                joined.append((after, follower))
        for after, follower in joined:
            events = await follower
            if events:
                check_whole(events, paced.requests[-1].text if after is None else None, after)
            else:
                assert after == event.id


async def test_resuming_after_any_id_gives_exactly_what_follows(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text("αβγ 🌊 " * 20), rate=800, chunk_size=1)) as paced:
        await start_worker(paced)
        job = await queue.enqueue(model="m", prompt="x")
        live = await _all(queue, job.id)
        whole = check_whole(live, "αβγ 🌊 " * 20)
        log = [e async for e in _log(queue, job.id)]
        for place, event in enumerate(log):
            assert event.id is not None
            rest = await _all(queue, job.id, str(event.id))
            if place == len(log) - 1:
                assert rest == []
                continue
            tail = check_whole(rest, after=event.id)
            seen = "".join(e.text for e in log[: place + 1] if isinstance(e, TextDelta))
            assert seen + tail.text == whole.text


async def _log(queue: AsyncQueue, job_id: str):  # type: ignore[no-untyped-def]
    for _, fields in await queue.connections.commands.xrange(f"deltafan:{{0}}:log:{job_id}"):
        yield decode(fields[b"e"])


async def test_log_pubsub_and_own_channel_carry_the_same_bytes(
    queue: AsyncQueue, redis_url: str, start_worker: StartWorker
) -> None:
    job = await queue.enqueue(model="m", prompt="x", channel="my.channel")
    async with redis.asyncio.Redis.from_url(redis_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(job.channel, "my.channel")
        await start_worker()
        received: dict[bytes, list[bytes]] = {job.channel.encode(): [], b"my.channel": []}
        while not all(data and b'"type":"done"' in data[-1] for data in received.values()):
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=10)
            if message is not None:
                received[message["channel"]].append(message["data"])
        log = [fields[b"e"] for _, fields in await client.xrange(f"deltafan:{{0}}:log:{job.id}")]
    assert received[job.channel.encode()] == log
    assert received[b"my.channel"] == log


async def test_a_job_xadded_by_hand_runs_and_its_id_follows_from_the_reply(
    queue: AsyncQueue, redis_url: str, provider: Provider, start_worker: StartWorker
) -> None:
    spec = orjson.dumps({"model": "m", "prompt": "by hand"})
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        entry = await client.xadd("deltafan:{0}:queue:default:normal", {"job": spec})
        named = orjson.dumps({"id": "0-mine", "model": "m", "prompt": "named"})
        await client.xadd("deltafan:{0}:queue:default:high", {"job": named})
    job = queue.job(f"0-default-normal-{entry.decode()}")
    assert (await job.status()).state == "queued"
    await start_worker()
    assert (await job.result(timeout=5)).text
    assert (await queue.job("0-mine").result(timeout=5)).text
    assert {request.model for request in provider.requests} == {"m"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"job": b"{not json"}, "job: is not JSON"),
        ({"job": b"[1]"}, "job: must be a JSON object"),
        ({"job": b'{"model":"m"}'}, "give either `prompt` or `messages`"),
        ({"job": b'{"v":9,"model":"m","prompt":"x"}'}, "v: "),
        ({"job": b'{"model":"m","prompt":"x","colour":"red"}'}, "colour: is not a field of a job"),
        ({"job": b'{"model":"m","prompt":"x","queue":"other"}'}, "queue: must be 'default'"),
        ({"job": b'{"id":"7-x","model":"m","prompt":"x"}'}, "id: must be a string"),
        ({"job": b'{"id":5,"model":"m","prompt":"x"}'}, "id: must be a string"),
        ({"job": b'{"model":"m","prompt":"x","params":' + b"[" * 99 + b"]" * 99 + b"}"}, "nested deeper"),
        ({"job": b'{"model":"m","prompt":"' + b"x" * 2_000_000 + b'"}'}, "bytes; at most"),
        ({"jobb": b"{}"}, "job: is required"),
    ],
)
async def test_an_entry_that_is_no_job_is_a_dead_letter_with_the_reason(
    queue: AsyncQueue, redis_url: str, start_worker: StartWorker, fields: dict[str, bytes], reason: str
) -> None:
    await start_worker()
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        entry = await client.xadd("deltafan:{0}:queue:default:normal", fields)  # type: ignore[arg-type]
        good = await queue.enqueue(model="m", prompt="good")
        assert (await good.result(timeout=5)).text
        job = queue.job(f"0-default-normal-{entry.decode()}")
        events = await _all(queue, job.id)
        [(_, letter)] = await client.xrange("deltafan:{0}:dead:default")
        assert await client.xlen("deltafan:{0}:queue:default:normal") == 0
    transcript = check_whole(events, "")
    assert transcript.error is not None
    assert transcript.error.code == "bad_request"
    assert reason in transcript.error.message
    assert reason in letter[b"errors"].decode()
    assert (await job.status()).state == "failed"


async def test_high_goes_before_normal_before_low(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    for priority in ("low", "normal", "high"):
        await queue.enqueue(model="m", prompt=priority, priority=priority)
    last = await queue.enqueue(model="m", prompt="low 2", priority="low")
    await start_worker(concurrency=1)
    await last.result(timeout=5)
    asked = [await queue.job(job.id).status() for job in (await queue.jobs()).jobs]
    by_start = sorted(asked, key=lambda status: (status.started or 0, status.id))
    assert [status.priority for status in by_start] == ["high", "normal", "low", "low"]


async def test_a_delayed_job_waits_and_says_so(queue: AsyncQueue, start_worker: StartWorker) -> None:
    await start_worker()
    job = await queue.enqueue(model="m", prompt="x", delay=0.4)
    assert (await job.status()).state == "delayed"
    assert (await job.result(timeout=5)).text
    status = await job.status()
    assert status.started is not None
    assert status.started - status.created >= 400


async def test_a_job_that_waits_past_its_deadline_expires_with_an_end(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="m", prompt="x", delay=30, expires_in=0.2)
    transcript = check_whole(await _all(queue, job.id), "")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "expired"
    assert transcript.error is not None
    assert transcript.error.code == "expired"
    assert (await job.status()).state == "expired"
    assert provider.requests == []
    with pytest.raises(JobFailed) as failed:
        await job.result()
    assert failed.value.code == "expired"


async def test_a_job_expires_in_a_queue_that_no_worker_serves(queue: AsyncQueue, start_worker: StartWorker) -> None:
    await start_worker()
    job = await queue.enqueue(model="m", prompt="x", queue="elsewhere", expires_in=0.1)
    transcript = check_whole(await _all(queue, job.id), "")
    assert transcript.done is not None
    assert transcript.done.finish_reason == "expired"
    assert await queue.connections.commands.xlen("deltafan:{0}:queue:elsewhere:normal") == 0


async def test_an_idempotency_key_gives_the_first_job_again(queue: AsyncQueue) -> None:
    first = await queue.enqueue(model="m", prompt="x", idempotency_key="order-1")
    again = await queue.submit(model="m", prompt="x", idempotency_key="order-1")
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(ConflictError, match="idempotency_key"):
        await queue.enqueue(model="m", prompt="other", idempotency_key="order-1")
    other_tenant = await queue.for_tenant("acme").enqueue(model="m", prompt="x", idempotency_key="order-1")
    assert other_tenant.id != first.id
    together = await asyncio.gather(
        *(queue.submit(model="m", prompt="x", idempotency_key="order-2") for _ in range(50))
    )
    assert len({enqueued.id for enqueued in together}) == 1
    assert sum(enqueued.created for enqueued in together) == 1


async def test_a_full_queue_refuses(queue: AsyncQueue) -> None:
    queue.limits = JobLimits(max_queue=2)
    await queue.enqueue(model="m", prompt="1")
    await queue.enqueue(model="m", prompt="2", delay=60)
    with pytest.raises(QueueFull):
        await queue.enqueue(model="m", prompt="3")


async def test_jobs_are_listed_newest_first_by_tenant_and_state(queue: AsyncQueue, start_worker: StartWorker) -> None:
    ids = [(await queue.enqueue(model="m", prompt=str(n), delay=60 if n % 2 else None)).id for n in range(7)]
    await queue.for_tenant("acme").enqueue(model="m", prompt="theirs")
    page = await queue.jobs(limit=3)
    seen = [status.id for status in page.jobs]
    while page.cursor is not None:
        page = await queue.jobs(limit=3, cursor=page.cursor)
        seen += [status.id for status in page.jobs]
    assert sorted(seen) == sorted(ids)
    assert len(seen) == len(ids)
    created = [(await queue.job(job_id).status()).created for job_id in seen]
    assert created == sorted(created, reverse=True)
    assert {status.id for status in (await queue.jobs(state="delayed")).jobs} == set(ids[1::2])
    with pytest.raises(JobNotFound):
        await queue.for_tenant("acme").job(ids[0]).status()
    with pytest.raises(JobNotFound):
        await queue.for_tenant("acme").job(ids[0]).cancel()
    with pytest.raises(JobNotFound):
        await anext(queue.for_tenant("acme").job(ids[0]).events())


async def test_nothing_is_kept_without_end(queue: AsyncQueue, redis_url: str, start_worker: StartWorker) -> None:
    await start_worker()
    job = await queue.enqueue(model="m", prompt="x", retention=1, metadata={"a": 1})
    await job.result(timeout=5)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert 0 < await client.pttl(f"deltafan:{{0}}:log:{job.id}") <= 1000
        await client.pexpire(f"deltafan:{{0}}:log:{job.id}", 1)
        while await client.exists(f"deltafan:{{0}}:log:{job.id}"):
            await asyncio.sleep(0.01)
        with pytest.raises(LogExpired):
            await _all(queue, job.id)
        async with asyncio.timeout(10):
            while await client.exists(
                "deltafan:{0}:jobs:default", "deltafan:{0}:expiries", f"deltafan:{{0}}:job:{job.id}"
            ):
                await asyncio.sleep(0.05)
    with pytest.raises(JobNotFound):
        await job.status()


async def test_reasoning_tool_calls_and_refusals_reach_the_follower(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    calls = (ToolCall("get_weather", '{"city": "Oslo"}'), ToolCall("get_time", "{}"))
    async with running(Script(reasoning="Let me think.", tool_calls=calls, chunk_size=3)) as scripted:
        await start_worker(scripted)
        job = await queue.enqueue(model="m", prompt="x", params={"tools": []})
        events = await _all(queue, job.id)
        result = await job.result()
    assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == "Let me think."
    assert [(call.name, call.arguments) for call in result.tool_calls] == [
        ("get_weather", '{"city": "Oslo"}'),
        ("get_time", "{}"),
    ]
    assert result.finish_reason == "tool_calls"


async def test_parameters_and_messages_reach_the_provider(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(
        model="openai/gpt-5",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        params={"temperature": 0.5, "max_completion_tokens": 3, "seed": 7, "vendor_extra": {"a": 1}},
    )
    result = await job.result(timeout=5)
    assert result.finish_reason == "length"
    request = provider.requests[-1]
    assert request.model == "gpt-5"
    assert request.params["temperature"] == 0.5
    assert request.params["seed"] == 7
    assert request.params["vendor_extra"] == {"a": 1}


async def test_text_of_any_script_survives(queue: AsyncQueue, start_worker: StartWorker) -> None:
    text = "a\u2028b\x00c\r\n\n\u0085 Ελλάδα 日本語 🏳️‍🌈 \ufeff end"
    async with running(Script(source=Echo(), chunk_size=1)) as echo:
        await start_worker(echo)
        job = await queue.enqueue(model="m", prompt=text)
        assert (await job.result(timeout=5)).text == text


async def test_usage_is_estimated_where_none_is_reported(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text("x" * 400), usage=False)) as quiet:
        await start_worker(quiet)
        job = await queue.enqueue(model="m", prompt="y" * 40)
        events = await _all(queue, job.id)
    usage = next(e for e in events if isinstance(e, Usage))
    assert usage.source == "estimated"
    assert usage.completion_tokens == 100


async def test_an_app_can_serve_the_stream_as_sse_itself(queue: AsyncQueue, start_worker: StartWorker) -> None:
    async with running(Script(source=Text("one two three"), first_token_delay=0.1)) as slow:
        await start_worker(slow)
        job = await queue.enqueue(model="m", prompt="x")
        body = b"".join([frame async for frame in job.sse(heartbeat=0.02)])
    frames = Decoder().feed(body)
    check_whole([event for f in frames if (event := decode(f.data))], "one two three")
    assert all(decode(f.data).type == f.event for f in frames)  # type: ignore[union-attr]
    assert b"\n:" in body or body.startswith(b":")  # heartbeats while nothing came
    after = [f.id async for frame in job.sse("1-0") for f in Decoder().feed(frame)]
    assert after == [f.id for f in frames if f.id != "1-0"] or after[-1] == frames[-1].id
    with pytest.raises(ValidationError, match="after"):
        job.sse("garbage")


async def test_the_spec_of_a_job_is_the_one_that_was_enqueued(queue: AsyncQueue) -> None:
    fields = {"model": "m", "prompt": "x", "run_at": "2040-01-01T00:00:00+00:00", "priority": "low", "timeout": 3.5}
    job = await queue.enqueue(fields)
    stored = await queue.connections.commands.hget(f"deltafan:{{0}}:job:{job.id}", "spec")
    assert parse_spec(stored) == parse_spec(fields)
    assert (await job.status()).state == "delayed"


def test_events_round_trip() -> None:
    event = TextDelta("é\u2028\x00", id=EventId(2, 3), job="0-x")
    assert decode(encode("0-x", EventId(2, 3), event)) == event
