"""`worker`, `relay` and `provider` as processes: ready lines, signals, and an end that comes with their parent's."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider
from deltafan.events import TextDelta
from tests.e2e.cli_kit import PIPE, cli, end_of, environment, line, running_cli
from tests.oracle import check_whole

LIFELINE = {"DELTAFAN_LIFELINE": "1"}


def worker_env(redis_url: str, provider: Provider, **more: str) -> dict[str, str]:
    return {
        "REDIS_URL": redis_url,
        "OPENAI_BASE_URL": provider.base_url,
        "OPENAI_API_KEY": "sk-test-0123456789abcdef",
        "DELTAFAN_LEASE": "2",
        **more,
    }


async def test_a_worker_drains_on_sigterm_and_its_stream_ends_whole(
    redis_url: str, queue: AsyncQueue, provider: Provider
) -> None:
    async with running_cli("worker", "--json", **worker_env(redis_url, provider)) as worker:
        assert (await line(worker))["ready"] is True
        job = await queue.enqueue(model="gpt-5", prompt="x", params={"metadata": {"rate": "300"}})
        events = []
        async for event in job.events():
            if isinstance(event, TextDelta) and not any(isinstance(e, TextDelta) for e in events):
                worker.send_signal(signal.SIGTERM)
            events.append(event)
        check_whole(events, provider.requests[-1].text)
        ended = await end_of(worker)
    assert ended.code == 0
    assert '"event": "worker.draining"' in ended.err
    assert "Traceback" not in ended.err
    assert (await job.status()).attempt == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_hands_the_job_over_at_once(
    redis_url: str, queue: AsyncQueue, provider: Provider, number: signal.Signals, code: int
) -> None:
    async with running_cli("worker", "--json", **worker_env(redis_url, provider)) as worker:
        await line(worker)
        job = await queue.enqueue(model="gpt-5", prompt="x", params={"metadata": {"fault": "stall=1"}})
        events = job.events()
        while not isinstance(await anext(events), TextDelta):
            continue
        worker.send_signal(number)
        assert worker.stderr is not None
        while b"worker.draining" not in await worker.stderr.readline():
            continue
        worker.send_signal(number)
        ended = await end_of(worker)
    await events.aclose()
    assert ended.code == code
    status = await job.status()
    assert status.failures == 0
    assert status.worker is None or not status.has_ended


async def test_a_worker_whose_parent_has_gone_hands_over_and_ends(
    redis_url: str, queue: AsyncQueue, provider: Provider
) -> None:
    env = worker_env(redis_url, provider, **LIFELINE)
    async with running_cli("worker", "--json", stdin=PIPE, **env) as worker:
        await line(worker)
        job = await queue.enqueue(model="gpt-5", prompt="x", params={"metadata": {"fault": "stall=1"}})
        events = job.events()
        while not isinstance(await anext(events), TextDelta):
            continue
        assert worker.stdin is not None
        worker.stdin.close()
        ended = await end_of(worker)
    await events.aclose()
    assert "worker.stopped" in ended.err
    assert await queue.connections.commands.keys("deltafan:*:worker:*") == []


async def test_a_relay_serves_until_sigterm(redis_url: str) -> None:
    async with running_cli("relay", "--port", "0", "--json", REDIS_URL=redis_url) as relay:
        url = (await line(relay))["url"]
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as answer:
            assert answer.status == 200
        relay.send_signal(signal.SIGTERM)
        ended = await end_of(relay)
    assert ended.code == 0
    assert '"level": "info"' in ended.err
    assert "GET /readyz 200" in ended.err


async def test_a_taken_port_is_told_in_a_line(redis_url: str) -> None:
    async with running_cli("relay", "--port", "0", "--json", REDIS_URL=redis_url) as relay:
        port = (await line(relay))["url"].rpartition(":")[2]
        for arguments in (["relay", "--port", port], ["provider", "--port", port]):
            ended = await cli(*arguments, REDIS_URL=redis_url)
            assert ended.code == 2
            assert len(ended.err.splitlines()) == 1
            assert f"cannot listen on 127.0.0.1:{port}" in ended.err


async def test_a_provider_answers_as_its_flags_say() -> None:
    flags = [
        "--text",
        "Hello there",
        "--chunk-size",
        "5",
        "--fault",
        "server_error*1",
        "--require-key",
        "k",
        "--port",
        "0",
    ]
    async with running_cli("provider", *flags, "--json") as provider:
        url = (await line(provider))["base_url"]
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        answers = []
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as session:
            for _ in range(2):
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    answers.append((answer.status, await answer.json()))
        assert answers[0][0] == 500
        assert answers[1][1]["choices"][0]["message"]["content"] == "Hello there"
        async with aiohttp.ClientSession() as session, session.get(f"{url}/models") as answer:
            assert answer.status == 401
        provider.send_signal(signal.SIGINT)
        assert (await end_of(provider)).code == 130


async def test_an_operators_own_worker_runs_its_tools(redis_url: str, queue: AsyncQueue, provider: Provider) -> None:
    main = Path(__file__).parents[2] / "worker" / "main.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, main, stdin=PIPE, stderr=PIPE, stdout=PIPE, env=environment(**worker_env(redis_url, provider))
    )
    try:
        calls = '[{"name":"current_time","arguments":{"timezone":"Europe/Paris"}}]'
        job = await queue.enqueue(
            model="gpt-5", prompt="x", tools=["current_time"], params={"metadata": {"tool_calls": calls}}
        )
        events = [event async for event in job.events()]
    finally:
        process.terminate()
        await end_of(process)
    check_whole(events)
    (result,) = [event for event in events if event.type == "tool_result"]
    assert result.result[-6:] in ("+01:00", "+02:00")  # type: ignore[attr-defined]
    assert process.returncode == 0
