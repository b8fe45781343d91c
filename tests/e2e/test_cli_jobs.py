"""The commands that enqueue, follow, list, cancel and bury jobs."""

from __future__ import annotations

import asyncio
import signal
import sys

import orjson

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider
from deltafan.wire import from_object
from tests.conftest import StartWorker
from tests.e2e.cli_kit import PATIENCE, PIPE, cli, end_of, environment, line, running_cli
from tests.e2e.relay_kit import HandWorker
from tests.oracle import check_order, check_whole

_FLAGS = """
--messages - --model groq/x --param temperature=0.5 --param stop=["a"] --tool clock --metadata user=7
--channel news --sink pusher --queue slow --priority high --delay 60 --expires-in 900 --idempotency-key k1
--timeout 30 --first-token-timeout 5 --stall-timeout 6 --max-attempts 2 --on-takeover fail
--cancel-if-abandoned 40 --retention 50
"""


async def test_enqueue_follow_prints_the_text_alone_and_a_summary_beside_it(
    redis_url: str, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    ended = await cli("enqueue", "hello", "--follow", REDIS_URL=redis_url)
    assert ended.code == 0
    assert ended.out == provider.requests[-1].text + "\n"
    assert ended.err.strip().startswith("stop · ")
    assert "tokens/s" in ended.err


async def test_json_lines_are_the_events_as_on_the_wire(
    redis_url: str, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    ended = await cli("enqueue", "hello", "--follow", "--json", REDIS_URL=redis_url)
    events = [event for raw in ended.json() if (event := from_object(raw)) is not None]
    check_whole(events, provider.requests[-1].text)


async def test_every_flag_reaches_the_job(redis_url: str, queue: AsyncQueue) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Héllo"}]
    flags = _FLAGS.split()
    ended = await cli("enqueue", *flags, "--json", given=orjson.dumps(messages), REDIS_URL=redis_url)
    (said,) = ended.json()
    assert said["state"] == "delayed"
    assert said["channel"] == "news"
    key = f"deltafan:{{0}}:job:{said['id']}"
    spec = orjson.loads(await queue.connections.commands.hget(key, "spec"))  # type: ignore[arg-type]
    assert spec == {
        "v": 1,
        "model": "groq/x",
        "messages": messages,
        "params": {"temperature": 0.5, "stop": ["a"]},
        "tools": ["clock"],
        "metadata": {"user": "7"},
        "channel": "news",
        "sinks": ["pusher"],
        "queue": "slow",
        "priority": "high",
        "delay": 60.0,
        "expires_in": 900.0,
        "idempotency_key": "k1",
        "timeout": 30.0,
        "first_token_timeout": 5.0,
        "stall_timeout": 6.0,
        "max_attempts": 2,
        "on_takeover": "fail",
        "cancel_if_abandoned": 40.0,
        "retention": 50.0,
    }


async def test_tail_resumes_after_an_id_and_gives_exactly_what_follows(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="gpt-5", prompt="hello")
    await job.result(timeout=10)
    whole = await cli("tail", job.id, "--json", REDIS_URL=redis_url)
    after = from_object(whole.json()[0])
    assert after is not None
    rest = await cli("tail", job.id, "--after", str(after.id), "--json", REDIS_URL=redis_url)
    events = [event for raw in rest.json() if (event := from_object(raw)) is not None]
    check_order(events, after.id)
    assert rest.json()[-1] == whole.json()[-1]


async def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_it_again(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="gpt-5", prompt="x", params={"metadata": {"rate": "2"}})
    async with running_cli("tail", job.id, "--json", REDIS_URL=redis_url) as process:
        assert (await line(process))["type"] == "meta"
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)
    assert ended.code == 130
    assert f"deltafan tail {job.id} --after 1-" in ended.err
    assert "Traceback" not in ended.err
    assert (await job.status()).state == "running"


async def test_a_job_can_be_looked_at_listed_and_cancelled(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(
        model="gpt-5", prompt="x", params={"metadata": {"fault": "stall"}}, metadata={"a": "\x1b[31m"}
    )
    events = job.events()
    assert (await anext(events)).type == "meta"
    listed, shown, shown_json = await asyncio.gather(
        cli("jobs", "--state", "running", REDIS_URL=redis_url),
        cli("show", job.id, REDIS_URL=redis_url),
        cli("show", job.id, "--json", REDIS_URL=redis_url),
    )
    assert [row.split()[:2] for row in listed.out.splitlines()] == [["ID", "STATE"], [job.id, "running"]]
    assert "running" in shown.out
    assert "\x1b" not in shown.out
    assert shown_json.json()[0]["state"] == "running"
    cancelled = await cli("cancel", job.id, "--json", REDIS_URL=redis_url)
    assert cancelled.json() == [{"id": job.id, "state": "cancelling", "cancelled": True}]
    assert [event.type async for event in events][-1] == "done"
    after = await cli("tail", job.id, REDIS_URL=redis_url)
    assert after.code == 1
    assert "cancelled" in after.err


async def test_jobs_are_paged_by_cursor(redis_url: str, queue: AsyncQueue) -> None:
    ids = [(await queue.enqueue(model="m", prompt="x")).id for _ in range(3)]
    first = (await cli("jobs", "--limit", "2", "--json", REDIS_URL=redis_url)).json()
    rest = (await cli("jobs", "--cursor", first[-1]["cursor"], "--json", REDIS_URL=redis_url)).json()
    assert sorted(row["id"] for row in (*first[:-1], *rest)) == sorted(ids)


async def test_a_failed_job_is_told_buried_retried_and_dropped(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker()
    param = 'metadata={"fault":"context_length"}'
    failed = await cli("enqueue", "x", "--param", param, "--follow", REDIS_URL=redis_url)
    assert failed.code == 1
    assert "context_length:" in failed.err
    (letter,) = (await cli("dead", "list", "--json", REDIS_URL=redis_url)).json()
    assert letter["reason"] == "context_length"
    (retried,) = (await cli("dead", "retry", letter["id"], "--json", REDIS_URL=redis_url)).json()
    assert retried["retry_of"] == letter["id"]
    assert [event.type async for event in queue.job(retried["id"]).events()][-1] == "done"
    dropped = await cli("dead", "drop", "--all", "--json", REDIS_URL=redis_url)
    assert dropped.json() == [{"dropped": 1}]
    assert (await cli("dead", "list", REDIS_URL=redis_url)).out == "no dead jobs\n"


async def test_a_new_attempt_says_so(redis_url: str, start_worker: StartWorker) -> None:
    await start_worker()
    ended = await cli("enqueue", "x", "--follow", "--param", 'metadata={"fault":"cut=3*1"}', REDIS_URL=redis_url)
    assert ended.code == 0
    assert "will be tried again" in ended.err
    assert "attempt 2: begins anew" in ended.err


async def test_a_reader_that_leaves_and_a_terminal_without_unicode_are_no_trouble(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="gpt-5", prompt="x")
    result = await job.result(timeout=10)
    plain = await cli("tail", job.id, REDIS_URL=redis_url, PYTHONIOENCODING="ascii")
    assert plain.out == result.text.encode("ascii", "replace").decode() + "\n"
    shell = f"{sys.executable} -m deltafan tail {job.id} --json | head -n 1"
    process = await asyncio.create_subprocess_shell(
        shell, stdout=PIPE, stderr=PIPE, env=environment(REDIS_URL=redis_url)
    )
    ended = await end_of(process)
    assert len(ended.json()) == 1
    assert ended.err == ""


async def test_a_job_that_redis_loses_in_mid_answer_is_told_as_lost_below_the_text_so_far(
    redis_url: str, queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(model="gpt-5", prompt="x")
    work = await worker.take()
    async with running_cli("tail", job.id, REDIS_URL=redis_url) as process:
        assert process.stdout is not None
        await work.say("so far")
        async with asyncio.timeout(PATIENCE):
            text = await process.stdout.readexactly(6)
        await queue.connections.commands.flushall()
        await queue.connections.commands.client_kill_filter(_type="pubsub")  # looked at at once, not after ten seconds
        ended = await end_of(process)
    assert (text.decode() + ended.out, ended.code) == ("so far\n", 1)
    assert ended.err == f"deltafan: no job '{job.id}' any more: Redis has lost it while it was followed\n"
