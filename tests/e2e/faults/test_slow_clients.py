"""Case 20: SSE clients that stop reading, read a byte at a time, or vanish: they cost the relay a bounded memory, and
nobody else a thing.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deltafan.broker.log import PAGE_BYTES
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.program import Program
from deltafan.chaos.rig import Rig, eventually
from deltafan.relay import client
from tests.e2e.relay_kit import SPEC, HandWorker, hand_worker, running_relay, streaming, text_of

CLIENTS = 60
REPLAYING = 30
PIECE = "日" * 20_000
"""Text of an event, 60,000 bytes."""
CLIENT_BUFFER = 64 * 1024
SLACK = 32 * 1024 * 1024
"""What an allocator keeps, and what a process needs for sixty connections."""


def _resident(program: Program) -> int:
    """Bytes of physical memory that a process has."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@asynccontextmanager
async def _connections(url: str, job_id: str, count: int) -> AsyncIterator[list[socket.socket]]:
    """Followers with the smallest receive buffer there is, which have read the head of the answer and nothing more."""
    loop = asyncio.get_running_loop()
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the system makes it 2,304
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
            await loop.sock_sendall(sock, f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await loop.sock_recv(sock, 15)) == b"HTTP/1.1 200 OK"
        yield opened
    finally:
        for sock in opened:
            sock.close()


async def _open(http: aiohttp.ClientSession, url: str) -> int:
    async with http.get(f"{url}/v1/stats") as answer:
        return int((await answer.json())["streams"]["open"])


async def _wait_for(http: aiohttp.ClientSession, url: str, streams: int) -> None:
    async def there() -> bool:
        return await _open(http, url) == streams

    await eventually(there)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
@pytest.mark.parametrize("reads", ["nothing", "a byte for each event"])
async def test_slow_clients_of_a_live_stream_cost_a_bounded_memory_and_are_cut_while_others_go_on(
    rig: Rig, reads: str
) -> None:
    """Bound: what each may owe: `client_buffer`, and the event that goes over it. Without it, each client would owe all
    that was said.
    """
    relay = await rig.relay(client_buffer=CLIENT_BUFFER)
    said = 150
    bound = CLIENTS * (CLIENT_BUFFER + 2 * len(PIECE.encode())) + SLACK
    assert bound * 4 < CLIENTS * said * len(PIECE.encode())
    async with hand_worker(rig.settings) as worker:
        job = await rig.queue.enqueue(SPEC)
        work = await worker.take()
        async with (
            streaming(rig.http, relay.url, job.id) as healthy,
            _connections(relay.url, job.id, CLIENTS) as slow,
        ):
            await healthy.until("1-0")
            assert await _open(rig.http, relay.url) == CLIENTS + 1
            before = largest = _resident(relay)
            for number in range(1, said + 1):
                await work.say(PIECE)
                await healthy.until(f"1-{number}")  # it has it at once, whatever the others do
                largest = max(largest, _resident(relay))
                if reads != "nothing":
                    for sock in slow:
                        with suppress(ConnectionResetError, BlockingIOError):
                            sock.recv(1)
            await _wait_for(rig.http, relay.url, 1)
            await work.finish()
            assert text_of(await healthy.rest()) == ""
    assert largest - before < bound
    assert relay.logged().count("does not keep up") == CLIENTS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
async def test_slow_clients_of_a_long_replay_cost_a_bounded_memory_while_others_are_served(rig: Rig) -> None:
    """Bound: what each may owe, and a page of the log, as it was read and as it is written. Without it, each client
    would hold most of the log.
    """
    relay = await rig.relay(client_buffer=CLIENT_BUFFER)
    said = 150
    bound = REPLAYING * (CLIENT_BUFFER + 4 * PAGE_BYTES) + SLACK
    assert bound * 4 < REPLAYING * said * len(PIECE.encode())
    async with hand_worker(rig.settings) as worker:
        job = await rig.queue.enqueue(SPEC)
        work = await worker.take()
        for _ in range(said // 50):
            await work.say(*[PIECE] * 50)
        async with streaming(rig.http, relay.url, job.id) as first:
            await first.until(f"1-{said}")
        await _wait_for(rig.http, relay.url, 0)
        before = largest = _resident(relay)
        async with _connections(relay.url, job.id, REPLAYING), asyncio.TaskGroup() as group:
            healthy = group.create_task(_whole(rig.http, relay.url, job.id))
            await _wait_for(rig.http, relay.url, REPLAYING + 1)
            await work.finish()
            while not healthy.done():
                largest = max(largest, _resident(relay))
                await asyncio.sleep(0.01)
            assert healthy.result() == work.text
            await _wait_for(rig.http, relay.url, REPLAYING)  # they are waited for, as long as they may stall
        await _wait_for(rig.http, relay.url, 0)
    assert "does not keep up" not in relay.logged()
    assert largest - before < bound


async def _whole(http: aiohttp.ClientSession, url: str, job_id: str) -> str:
    async with streaming(http, url, job_id) as stream:
        return text_of(await stream.rest())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_a_client_that_takes_nothing_is_cut_though_it_owes_little(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its side still acknowledges, with a window of zero. In time, for what it owes stays far below its buffer."""
    monkeypatch.setattr(client, "VANISHED_SECONDS", 1.0)
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    async with running_relay(queue, heartbeat=0.2) as relay, streaming(http, relay.url, job.id) as healthy:
        await work.say(PIECE)
        async with _connections(relay.url, job.id, 3):
            await _wait_for(http, relay.url, 1)
        await work.say("more ")
        await work.finish()
        assert text_of(await healthy.rest()) == work.text


def _may_have_a_network_of_its_own() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    words = ["unshare", "--user", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(not _may_have_a_network_of_its_own(), reason="needs a network namespace: unshare, ip, and leave to")
async def test_five_hundred_clients_that_vanish_without_a_fin_are_reaped_and_others_are_not_affected() -> None:
    """Of an idle stream: what tells the relay is that nobody acknowledges its heartbeats."""
    words: Any = ["--user", "--map-root-user", "--net", sys.executable, "-m", "tests.e2e.faults.vanishing"]
    running = await asyncio.create_subprocess_exec(
        "unshare", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    out, err = await running.communicate()
    assert out == b"reaped\n", err.decode()
