"""The relay in service: heartbeats, clients that leave, draining, its bound on followers, and an outage of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest
import uvloop
from aiohttp import web

from deltafan.broker import hub
from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.relay import client
from deltafan.relay.app import create_app
from deltafan.relay.context import STREAMS
from deltafan.relay.streams import Streams
from deltafan.settings import RedisSettings, RelaySettings
from tests.e2e.relay_kit import SPEC, HandWorker, eventually, hand_worker, running_relay, streaming, text_of


@contextlib.asynccontextmanager
async def plain_runner(queue: AsyncQueue, **settings: float) -> AsyncIterator[tuple[str, Streams, web.AppRunner]]:
    """The application in a runner of somebody else's, which does not tell handlers that a client has left."""
    app = create_app(queue, RelaySettings.model_validate(settings))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", app[STREAMS], runner
    finally:
        await runner.cleanup()


async def followed(queue: AsyncQueue, job_id: str) -> bool:
    ((_, count),) = await queue.connections.commands.pubsub_numsub(queue.job(job_id).channel)
    return int(count) == 1


async def unfollowed(queue: AsyncQueue, job_id: str) -> bool:
    return not await followed(queue, job_id)


async def test_a_silent_stream_gets_heartbeats_that_do_not_move_the_cursor(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    async with running_relay(queue, heartbeat=0.1) as relay, streaming(http, relay.url, job.id) as stream:
        await stream.until("1-0")
        beats = [await stream.next(heartbeats=True) for _ in range(3)]
        await work.say("a")
        await stream.until("1-1")
    assert [(b.event, b.id) for b in beats if b] == [("heartbeat", "1-0")] * 3, "no id of its own: the last one stays"
    times = [orjson.loads(b.data)["time"] for b in beats if b]
    assert times == sorted(times)
    assert b"event: heartbeat\ndata: " in stream.raw


async def test_a_client_that_leaves_is_noticed_at_once_and_its_subscription_given_up(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, heartbeat=60) as relay:
        async with streaming(http, relay.url, job.id):
            await eventually(lambda: followed(queue, job.id))
        await eventually(lambda: unfollowed(queue, job.id))


async def test_in_any_runner_a_client_that_has_left_is_noticed_by_its_heartbeat(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with plain_runner(queue, heartbeat=0.1) as (url, streams, _):
        async with streaming(http, url, job.id) as stream:
            await stream.next(heartbeats=True)
            assert streams.statistics().open == 1

        async def none_open() -> bool:
            return streams.statistics().open == 0

        await eventually(none_open)
        assert streams.statistics().served == 1


async def test_beyond_its_followers_the_relay_answers_503_until_one_leaves(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue, max_followers=1) as relay:
        url = f"{relay.url}/v1/jobs/{job.id}/events"
        async with streaming(http, relay.url, job.id), http.get(url) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "too_many_followers")
            assert int(response.headers["Retry-After"]) > 0
            async with http.get(url, headers={"Accept": "application/json"}) as snapshot:
                assert snapshot.status == 200
        async with asyncio.timeout(5):
            while True:
                async with http.get(url) as response:
                    if response.status == 200:
                        break


async def test_draining_ends_streams_in_good_order_and_they_go_on_elsewhere(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    async with AsyncQueue(redis_settings) as other, running_relay(other) as second:
        async with running_relay(queue) as first, streaming(http, first.url, job.id) as stream:
            await work.say("a")
            await stream.until("1-1")
            first.stop.set()
            seen = await stream.rest()  # ends, and not by an error: the last chunk has come
            await first.task
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(f"{first.url}/healthz")
        assert seen == []
        await work.say("b")
        async with streaming(http, second.url, job.id, "1-1") as stream:
            await work.finish()
            assert text_of(await stream.rest()) == "b"


async def test_draining_lets_a_request_finish(queue: AsyncQueue) -> None:
    body = orjson.dumps(SPEC)
    async with running_relay(queue, relay_drain=5.0) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # the handler waits for the body
        relay.stop.set()
        await eventually(lambda: refuses_connections(relay.url))
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 202")
        writer.close()
        await relay.task


async def refuses_connections(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    except ConnectionError:
        return True
    writer.close()
    return False


async def test_a_request_whose_body_never_comes_holds_up_the_end_no_longer_than_the_drain(queue: AsyncQueue) -> None:
    async with running_relay(queue, relay_drain=0) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        await writer.drain()
        async with asyncio.timeout(10):
            relay.stop.set()
            await relay.task
        await reader.read()
        writer.close()


async def test_a_draining_relay_is_not_ready_and_takes_no_streams_while_it_lives(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with plain_runner(queue) as (url, streams, _):
        async with streaming(http, url, job.id) as stream:
            streams.drain()
            assert await stream.rest() == []
        for path, status in (("/readyz", 503), (f"/v1/jobs/{job.id}/events", 503), ("/healthz", 200)):
            async with http.get(url + path) as response:
                assert response.status == status
                if status == 503:
                    assert (await response.json())["error"]["code"] == "draining"


async def test_a_stream_ends_when_the_record_of_its_job_vanishes(
    queue: AsyncQueue, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "AUDIT_INTERVAL", 0.1)
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        await queue.connections.commands.flushall()
        (told,) = await stream.rest()
        assert (told.event, told.id, orjson.loads(told.data)["code"]) == ("error", "", "job_gone")
        async with http.get(f"{relay.url}/v1/jobs/{job.id}/events") as response:
            assert response.status == 404


async def test_what_somebody_else_publishes_on_a_live_channel_disturbs_no_stream(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    async with running_relay(queue) as relay, streaming(http, relay.url, job.id) as stream:
        await stream.until("1-0")
        for junk in (b"", b"{}", b'{"id":"1-1","type":"a\nid: 9-9"}', b'{"id":"x","type":"text_delta"}', b"\xff"):
            await queue.connections.commands.publish(job.channel, junk)
        await work.say("a")
        await work.finish()
        assert text_of(await stream.rest()) == "a"


async def test_an_outage_of_redis_is_503_on_requests_and_only_a_pause_on_open_streams(
    http: aiohttp.ClientSession,
) -> None:
    async with EmbeddedValkey(appendonly=True, extra_args=["--appendfsync", "always"]) as valkey:
        settings = RedisSettings(url=valkey.url, command_timeout=2.0, probe_interval=0.5)
        async with (
            AsyncQueue(settings) as queue,
            hand_worker(settings) as worker,
            running_relay(queue, heartbeat=0.1) as relay,
        ):
            job = await queue.enqueue(SPEC)
            work = await worker.take()
            async with streaming(http, relay.url, job.id) as stream:
                await work.say("a")
                await stream.until("1-1")
                await valkey.kill()
                beat = await stream.next(heartbeats=True)
                assert beat is not None
                assert beat.event == "heartbeat"
                for method, path in (
                    ("GET", f"/v1/jobs/{job.id}"),
                    ("GET", f"/v1/jobs/{job.id}/events"),
                    ("GET", "/v1/jobs"),
                    ("POST", f"/v1/jobs/{job.id}/cancel"),
                    ("POST", "/v1/jobs"),
                    ("GET", "/readyz"),
                ):
                    body = SPEC if path == "/v1/jobs" and method == "POST" else None
                    async with http.request(method, relay.url + path, json=body) as response:
                        error = (await response.json())["error"]
                        assert (response.status, error["code"]) == (503, "unavailable"), path
                        assert int(response.headers["Retry-After"]) > 0
                        assert str(valkey.port) not in error["message"], "addresses are the operator's"
                async with http.get(f"{relay.url}/healthz") as response:
                    assert response.status == 200
                await valkey.start()
                await work.say("b")  # possibly before the subscription is back: then the log has it
                await work.finish()
                assert text_of(await stream.rest()) == "b"
            async with http.get(f"{relay.url}/readyz") as response:
                assert response.status == 200


async def a_slow_client_is_cut(redis_settings: RedisSettings) -> None:
    """While another one gets everything at once; and then it resumes whole, from the last id that it has got."""
    loop = asyncio.get_running_loop()
    async with (
        AsyncQueue(redis_settings) as queue,
        hand_worker(redis_settings) as worker,
        plain_runner(queue, client_buffer=16 * 1024) as (url, streams, _),
        aiohttp.ClientSession() as http,
    ):
        job = await queue.enqueue(SPEC)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", int(url.rpartition(":")[2])))
            await loop.sock_sendall(slow, f"GET /v1/jobs/{job.id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = await loop.sock_recv(slow, 100)
            async with streaming(http, url, job.id) as stream:
                work = await worker.take()
                said = 0
                while not streams.statistics().cut:
                    said += 1
                    await work.say(f"{said} " + "x" * 50_000)
                    await stream.until(f"1-{said}")
                await work.finish()
                assert [e.event for e in await stream.rest()] == ["done"]
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(slow, 1 << 20):
                    received += data
        assert not received.endswith(b"0\r\n\r\n"), "a stream that was cut must not look complete"
        whole = received[: received.rindex(b"\n\n")]
        after = whole[whole.rindex(b"id: ") + 4 :].split(b"\n")[0].decode()
        async with streaming(http, url, job.id, after) as stream:
            rest = text_of(await stream.rest())
    seen = int(after.partition("-")[2])
    assert 0 < seen < said
    assert rest == "".join(f"{n} " + "x" * 50_000 for n in range(seen + 1, said + 1))


async def test_a_slow_client_is_cut_while_others_go_on_and_resumes_whole(redis_settings: RedisSettings) -> None:
    await a_slow_client_is_cut(redis_settings)


def test_on_uvloop_a_slow_client_is_cut_and_resumes_whole_too(redis_settings: RedisSettings) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(a_slow_client_is_cut(redis_settings))


async def test_a_client_that_takes_nothing_of_a_replay_is_cut_in_the_end(
    queue: AsyncQueue, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STALL_SECONDS", 0.2)
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    for _ in range(20):
        await work.say(*["x" * 60_000] * 10)
    async with plain_runner(queue, client_buffer=1 << 30) as (url, streams, runner):
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            stalled.sendall(f"GET /v1/jobs/{job.id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

            async def was_cut() -> bool:
                # The connection has gone as well: it does not wait for its bytes to be taken.
                return streams.statistics().cut == 1 and runner.server is not None and not runner.server.connections

            await eventually(was_cut)


async def test_a_stream_that_cannot_be_subscribed_yet_waits_and_then_misses_nothing(
    redis_url: str, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    settings = RedisSettings(url=redis_url, command_timeout=0.3, probe_interval=0.3)
    acl = worker.connections.commands
    async with AsyncQueue(settings) as queue, running_relay(queue, heartbeat=0.1) as relay:
        job = await queue.enqueue(SPEC)
        work = await worker.take()
        await acl.execute_command("ACL", "SETUSER", "default", "resetchannels")  # SUBSCRIBE is refused
        try:
            async with streaming(http, relay.url, job.id) as stream:
                for _ in range(10):  # longer than a subscription may take
                    beat = await stream.next(heartbeats=True)
                    assert beat is not None
                    assert beat.event == "heartbeat"
                await acl.execute_command("ACL", "SETUSER", "default", "allchannels")
                await work.say("a")
                await work.finish()
                assert [e.id for e in await stream.rest()] == ["1-0", "1-1", "1-2"]
        finally:
            await acl.execute_command("ACL", "SETUSER", "default", "allchannels")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_the_system_drops_a_connection_whose_other_side_has_vanished(
    queue: AsyncQueue, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    async with plain_runner(queue, heartbeat=10.0) as (url, _, runner), streaming(http, url, job.id):
        assert runner.server is not None
        (connection,) = runner.server.connections
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


async def test_viewers_that_come_and_go_leave_nobody_without_events(
    queue: AsyncQueue, worker: HandWorker, http: aiohttp.ClientSession
) -> None:
    job = await queue.enqueue(SPEC)
    work = await worker.take()
    seen = "1-0"
    async with running_relay(queue) as relay:
        for n in range(1, 40):  # each leaves as the next one comes, so that feeds close and open at the same time
            async with streaming(http, relay.url, job.id, seen) as stream:
                await work.say(f"{n} ")
                events = await stream.until(f"1-{n}")
            assert text_of(events) == f"{n} "
            seen = events[-1].id
