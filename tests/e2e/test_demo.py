"""`deltafan demo` and `serve`: everything at once, and nothing left afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest
from redis.asyncio import Redis

from deltafan.devserver.provider import Provider
from deltafan.wire import from_object
from tests.e2e.cli_kit import MARK, all_ended, cli, end_of, line, marked, new_mark, running_cli
from tests.oracle import check_whole


async def test_the_demo_streams_an_answer_says_what_it_used_and_leaves_nothing() -> None:
    mark = new_mark()
    ended = await cli("demo", "Why is the sky blue?", **{MARK: mark})
    assert ended.code == 0, ended.err
    assert ended.out.startswith("You wrote: “Why is the sky blue?”.")
    assert "the scripted provider (set OPENAI_API_KEY to use a real one)" in ended.err
    *_, summary, pusher = ended.err.strip().splitlines()
    assert re.fullmatch(
        r"Pusher's channel private-job-\S+ \(emulated\) carried the same text in \d+ messages\.", pusher
    )
    for part in ("stop · ", " tokens (", "first token ", "total ", "tokens/s"):
        assert part in summary
    assert marked(mark) == []


async def test_the_demo_asks_the_real_provider_and_redis_when_given(redis_url: str, provider: Provider) -> None:
    env = {"REDIS_URL": redis_url, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-real-0123456789"}
    ended = await cli("demo", "hello", "--json", "--model", "gpt-5", **env)
    assert ended.code == 0, ended.err
    events = [event for raw in ended.json() if (event := from_object(raw)) is not None]
    check_whole(events, provider.requests[-1].text)
    assert provider.requests[-1].model == "gpt-5"
    assert f"openai at {provider.base_url}, over {redis_url}" in ended.err


async def test_a_demo_whose_job_fails_ends_with_1_and_the_reason(redis_url: str) -> None:
    env = {"REDIS_URL": redis_url, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-real-0123456789"}
    ended = await cli("demo", "hello", **env, DELTAFAN_MAX_ATTEMPTS="1")
    assert ended.code == 1
    assert "connection: " in ended.err


@pytest.mark.parametrize("command", ["demo", "serve"])
async def test_a_redis_that_is_not_there_is_told_within_the_command_timeout(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it is connected to, and says nothing
        port = silent.getsockname()[1]
        for url, why in (("redis://127.0.0.1:1/0", "cannot be reached"), (f"redis://u:secret@127.0.0.1:{port}", "")):
            began = time.monotonic()
            ended = await cli(command, REDIS_URL=url, DELTAFAN_COMMAND_TIMEOUT="1")
            assert time.monotonic() - began < 15
            assert ended.code == 1
            (said,) = ended.err.splitlines()
            assert said.startswith("deltafan: REDIS_URL redis://")
            assert why in said
            assert "secret" not in said


async def test_the_files_of_the_embedded_server_go_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    mark = new_mark()
    async with running_cli("demo", "hi", "--json", TMPDIR=str(tmp_path), **{MARK: mark}) as process:
        await line(process)
        assert [name.startswith("deltafan-valkey-") for name in os.listdir(tmp_path)] == [True]
        process.kill()
        await all_ended(mark)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("moment", ["early", "streaming"])
async def test_nothing_survives_a_kill_of_the_demo(moment: str) -> None:
    mark = new_mark()
    async with running_cli("demo", "hi", "--json", **{MARK: mark}) as process:
        if moment == "early":
            await asyncio.sleep(random.uniform(0.2, 2.0))  # any moment will do: the claim is about all of them
        else:
            while (await line(process))["type"] != "text_delta":
                continue
            assert len(marked(mark)) >= 4
        process.kill()
        await all_ended(mark)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
async def test_a_signal_ends_the_demo_and_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    mark = new_mark()
    async with running_cli("demo", "hi", "--json", TMPDIR=str(tmp_path), **{MARK: mark}) as process:
        assert (await line(process))["type"] == "meta"
        process.send_signal(number)
        ended = await end_of(process)
    assert ended.code == code
    assert "Traceback" not in ended.err
    await all_ended(mark)
    assert os.listdir(tmp_path) == []


async def test_a_worker_that_dies_under_serve_is_restarted() -> None:
    """With API keys, too: then nothing else is as on a developer's machine."""
    async with running_cli("serve", "--port", "0", "--json", DELTAFAN_API_KEYS="acme=some-key-123") as process:
        said = await line(process)
        async with Redis.from_url(said["redis_url"]) as redis:

            async def living(number: int, without: int = 0) -> set[int]:
                """The process ids of the workers that have a heartbeat."""
                async with asyncio.timeout(40):
                    while True:
                        names: list[bytes] = await redis.keys("deltafan:{0}:worker:*")
                        pids = {int(name.decode().split("-")[-2]) for name in names} - {without}
                        if len(pids) >= number:
                            return pids
                        await asyncio.sleep(0.1)

            killed = min(await living(2))
            os.kill(killed, signal.SIGKILL)
            await living(2, without=killed)
        assert process.returncode is None


async def test_serve_serves_until_ctrl_c() -> None:
    mark = new_mark()
    async with running_cli("serve", "--port", "0", "--json", **{MARK: mark}) as process:
        said = await line(process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{said['url']}/") as page:
                assert page.status == 200
            async with session.get(f"{said['url']}/readyz") as answer:
                assert answer.status == 200
        enqueued = await cli("enqueue", "hi", "--follow", "--sink", "pusher", REDIS_URL=said["redis_url"])
        assert enqueued.out.startswith("You wrote: “hi”.")
        doctor = await cli("doctor", "--no-provider", "--json", REDIS_URL=said["redis_url"], **said["pusher"])
        assert {found["check"]: found["level"] for found in doctor.json()}["pusher"] == "ok"
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)
    assert ended.code == 130
    assert ended.err == ""
    await all_ended(mark)


async def test_serve_ends_when_one_of_its_processes_does() -> None:
    mark = new_mark()
    async with running_cli("serve", "--port", "0", "--json", "--host", "0.0.0.0", **{MARK: mark}) as process:
        ended = await end_of(process)
    assert ended.code == 1
    assert "set DELTAFAN_API_KEYS or bind to 127.0.0.1" in ended.err
    assert "deltafan: the relay did not start: its settings are wrong" in ended.err
    await all_ended(mark)
