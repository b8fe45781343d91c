"""A Redis that answers and refuses: full, read-only, loading, unable to save, or with an ACL that forbids something.

Each is one clear line in the log, and everything goes on by itself when the cause is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from deltafan.broker.rights import Role, commands
from deltafan.chaos.program import Program
from deltafan.chaos.rig import TEXT, Job, Rig, eventually
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.errors import BrokerUnavailable
from tests.e2e.cli_kit import cli
from tests.e2e.faults.conftest import REDIS_BINARY
from tests.e2e.faults.topologies_kit import on_all


def told(program: Program | Path, *names: str) -> list[dict[str, Any]]:
    """The lines of a process's log with these names."""
    text = (program.log if isinstance(program, Program) else program).read_bytes().decode(errors="replace")
    assert "Traceback" not in text
    lines = [orjson.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"].split()[0] in names]


async def until_told(program: Program | Path, *names: str) -> None:
    async def check() -> bool:
        return bool(told(program, *names))

    await eventually(check)


async def ask(redis: Redis, *words: str | int) -> Any:
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def refused_with_503(rig: Rig, relay: Program) -> None:
    """Producers get a clear answer, on either way."""
    async with rig.http.post(f"{relay.url}/v1/jobs", json={"model": "vllm/x", "prompt": "x"}) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert (await answer.json())["error"]["code"] == "unavailable"
    with pytest.raises(BrokerUnavailable, match="Redis does not take writes now: "):
        await rig.queue.enqueue(model="vllm/x", prompt="x")


async def streaming(rig: Rig) -> tuple[Program, Program, Job]:
    """A worker that others would take the job from, a relay, and a stream under way."""
    worker, relay = await rig.worker(), await rig.relay()
    job = await rig.enqueue(TEXT * 8, rate=60)
    await job.follow(relay)
    await job.begun()
    return worker, relay, job


async def goes_on(rig: Rig, worker: Program, relay: Program, job: Job, why: str) -> None:
    """The cause is gone: the stream ends whole, in the attempt in which it began, and each log has its two lines."""
    await until_told(worker, "redis.available")
    later = await rig.enqueue(TEXT)
    await later.follow(relay)
    await rig.check()
    assert {(await each.handle.status()).attempt for each in (job, later)} == {1}
    lost, back = told(worker, "redis.unavailable", "redis.refused", "redis.available")
    assert why in lost["error"]
    assert (lost["level"], back["jobs"], back["worker"]) == ("warning", 1, worker.worker)
    async with rig.http.post(f"{relay.url}/v1/jobs", json={"model": "vllm/x", "prompt": "x"}) as answer:
        assert answer.status == 202
    await until_told(relay, "redis.available")
    assert [line["event"].split()[0] for line in told(relay, "redis.unavailable", "redis.available")] == [
        "redis.unavailable",
        "redis.available",
    ]


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_out_of_memory_a_stream_holds_and_goes_on_and_producers_are_told(rig: Rig) -> None:
    worker, relay, job = await streaming(rig)
    await on_all(rig.backend, lambda redis: redis.config_set("maxmemory", 1))
    await until_told(worker, "redis.unavailable")
    for _ in range(3):
        await refused_with_503(rig, relay)
    await on_all(rig.backend, lambda redis: redis.config_set("maxmemory", 0))
    await goes_on(rig, worker, relay, job, "maxmemory")


async def test_a_server_that_cannot_save_is_waited_for(rig: Rig) -> None:
    """MISCONF: a snapshot failed, and the server takes no writes until one succeeds."""
    assert rig.redis is not None
    worker, relay, job = await streaming(rig)
    await rig.redis.config_set("save", "3600 1")
    folder = (await rig.redis.config_get("dir"))["dir"]
    in_the_way = Path(folder) / "dump.rdb"  # a folder of that name: the file cannot be put there
    in_the_way.mkdir()
    await _saved(rig.redis, "err")
    await until_told(worker, "redis.unavailable")
    await refused_with_503(rig, relay)
    in_the_way.rmdir()
    await _saved(rig.redis, "ok")
    await goes_on(rig, worker, relay, job, "RDB snapshots")


async def _saved(redis: Redis, status: str) -> None:
    async def check() -> bool:
        info = await redis.info("persistence")
        return not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == status

    await redis.bgsave()
    await eventually(check)


async def test_a_primary_that_becomes_a_replica_is_waited_for(rig: Rig) -> None:
    assert rig.redis is not None
    worker, relay, job = await streaming(rig)
    # Nothing answers there: it stays as it is, and takes no writes.
    await ask(rig.redis, "REPLICAOF", "127.0.0.1", 1)
    await until_told(worker, "redis.unavailable")
    await refused_with_503(rig, relay)
    await ask(rig.redis, "REPLICAOF", "NO", "ONE")
    await goes_on(rig, worker, relay, job, "replica")


async def test_a_read_only_replica_is_told_at_the_start_and_waited_for(rig: Rig, tmp_path: Path) -> None:
    assert rig.redis is not None
    async with EmbeddedValkey(binary=REDIS_BINARY) as primary:
        await ask(rig.redis, "REPLICAOF", "127.0.0.1", primary.port)
        starting = asyncio.create_task(rig.worker())
        log = tmp_path / "worker1.log"
        log.touch()
        await until_told(log, "redis.unavailable")
        relay = await rig.relay()
        await refused_with_503(rig, relay)
        await ask(rig.redis, "REPLICAOF", "NO", "ONE")
        worker = await starting
    await (await rig.enqueue(TEXT)).follow(relay)
    await rig.check()
    lost, back = told(worker, "redis.unavailable", "redis.available")
    assert "read only replica" in lost["error"]
    assert back["seconds"] > 0


@pytest.mark.server(
    appendonly=True, extra_args=["--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024"]
)
async def test_a_server_that_loads_its_data_is_waited_for(rig: Rig) -> None:
    assert rig.redis is not None
    pipe = rig.redis.pipeline(transaction=False)
    for number in range(8000):
        pipe.set(f"another:{number}", "x", ex=600)
    await pipe.execute()
    worker, relay = await rig.worker(), await rig.relay()
    job = await rig.enqueue(TEXT * 8, rate=60)
    await job.follow(relay)
    await job.begun()
    await rig.backend.kill()
    starting = asyncio.create_task(rig.backend.start())

    async def loading() -> bool:
        return any("loading" in line["error"] for line in told(worker, "redis.unavailable"))

    await eventually(loading)
    async with rig.http.get(f"{relay.url}/readyz") as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers
    await starting
    await until_told(worker, "redis.available")
    await rig.check()
    assert (await job.handle.status()).failures == 0


async def test_an_outage_is_one_line_at_the_loss_and_one_at_the_return(rig: Rig) -> None:
    worker, relay, _ = await streaming(rig)
    assert worker.redis is not None
    assert relay.redis is not None
    worker.redis.go_away()
    relay.redis.go_away()
    await until_told(worker, "redis.unavailable")
    for _ in range(20):
        async with rig.http.get(f"{relay.url}/v1/jobs") as answer:
            assert answer.status == 503
    await asyncio.sleep(1.5)  # several tries of every loop
    worker.redis.come_back()
    relay.redis.come_back()
    await until_told(worker, "redis.available")

    async def answers() -> bool:
        async with rig.http.get(f"{relay.url}/v1/jobs") as answer:
            return answer.status == 200

    await eventually(answers)
    await rig.check()
    lost, back = told(worker, "redis.unavailable", "redis.refused", "redis.available")
    assert "cannot be reached" in lost["error"]
    assert back["seconds"] >= 1.5
    assert back["jobs"] == 1
    assert len(told(relay, "redis.unavailable", "redis.refused", "redis.available")) == 2


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_wrong_eviction_policy_is_told_at_the_start(rig: Rig, policy: str) -> None:
    assert rig.redis is not None
    await rig.redis.config_set("maxmemory-policy", policy)
    for program in (await rig.worker(), await rig.relay()):
        (line,) = told(program, "redis.evicts")
        assert (line["level"], line["policy"]) == ("warning", policy)
        assert "maxmemory-policy noeviction" in line["mend"]


async def _user(rig: Rig, name: str, *rules: str) -> dict[str, str]:
    """A new ACL user; gives the environment of a program that is it."""
    assert rig.redis is not None
    await ask(rig.redis, "ACL", "SETUSER", name, "on", ">p", "~deltafan:*", "&deltafan:*", *rules)
    url = rig.backend.url.replace("//", f"//{name}:p@")
    return {"REDIS_URL": url, "DELTAFAN_PORT": "0", "OPENAI_API_KEY": "sk-test-0123456789"}


@pytest.mark.parametrize("arguments", [["worker"], ["worker", "--processes", "2"], ["relay"]], ids=" ".join)
async def test_an_acl_that_forbids_a_command_is_told_at_the_start_by_its_name(rig: Rig, arguments: list[str]) -> None:
    env = await _user(rig, "narrow", "+@all", "-xadd", "-xinfo", "-evalsha")
    ended = await cli(*arguments, **env)
    assert ended.code == 2
    assert "EVALSHA, XADD, XINFO CONSUMERS" in ended.err
    assert "ACL SETUSER" in ended.err


async def test_an_acl_that_forbids_the_keys_is_told_at_the_start(rig: Rig) -> None:
    env = await _user(rig, "elsewhere", "resetkeys", "~other:*", "+@all")
    ended = await cli("worker", **env)
    assert ended.code == 2
    assert "needs: keys deltafan:*;" in ended.err


async def test_a_right_that_is_taken_from_a_relay_and_given_back(rig: Rig) -> None:
    assert rig.redis is not None
    relay = await rig.relay()
    await ask(rig.redis, "ACL", "SETUSER", "default", "-evalsha", "-eval")
    try:
        for _ in range(3):
            async with rig.http.post(f"{relay.url}/v1/jobs", json={"model": "m", "prompt": "x"}) as answer:
                assert answer.status == 503
                assert (await answer.json())["error"]["code"] == "configuration"
                assert "Retry-After" in answer.headers
    finally:
        await ask(rig.redis, "ACL", "SETUSER", "default", "+evalsha", "+eval")
    async with rig.http.post(f"{relay.url}/v1/jobs", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 202
    assert [line["event"].split()[0] for line in told(relay, "redis.refused", "redis.available")] == [
        "redis.refused",
        "redis.available",
    ]


async def test_a_right_that_is_taken_from_a_worker_holds_its_jobs_and_is_told_once(rig: Rig) -> None:
    """For longer than the worker's looks at what it holds take."""
    assert rig.redis is not None
    worker, relay, job = await streaming(rig)
    await ask(rig.redis, "ACL", "SETUSER", "default", "-evalsha", "-eval")
    try:
        await until_told(worker, "redis.refused")
        await asyncio.sleep(2.5)
    finally:
        await ask(rig.redis, "ACL", "SETUSER", "default", "+evalsha", "+eval")
    await until_told(worker, "redis.available")
    await (await rig.enqueue(TEXT)).follow(relay)
    await rig.check()
    refused, back = told(worker, "redis.refused", "redis.unavailable", "redis.available")
    assert "evalsha" in refused["error"]
    assert back["seconds"] >= 2.5
    assert not told(worker, "job.crashed", "append.failed", "ending.failed")
    status = await job.handle.status()
    assert (status.attempt, status.failures) == (1, 0)


async def test_a_relay_that_nobody_asks_tells_of_an_outage_from_its_streams(rig: Rig) -> None:
    _, relay, _ = await streaming(rig)
    assert relay.redis is not None
    relay.redis.go_away()
    await until_told(relay, "redis.unavailable")
    await asyncio.sleep(1.0)
    relay.redis.come_back()
    await until_told(relay, "redis.available")
    await rig.check()
    lost, back = told(relay, "redis.unavailable", "redis.available")
    assert "cannot be reached" in lost["error"]
    assert back["seconds"] >= 1.0


async def test_a_relay_that_starts_without_redis_says_so_once(rig: Rig) -> None:
    await rig.backend.kill()
    relay = await rig.relay()
    await until_told(relay, "redis.unavailable")
    for _ in range(2):
        async with rig.http.get(f"{relay.url}/v1/jobs") as answer:
            assert answer.status == 503
    await rig.backend.start()
    await until_told(relay, "redis.available")
    lines = told(relay, "redis.unavailable", "redis.available")
    assert [line["event"] for line in lines] == ["redis.unavailable", "redis.available"]


class _As:
    """The rig's server, for programs that are another ACL user."""

    def __init__(self, url: str) -> None:
        self.url = url


@asynccontextmanager
async def _programs_of(rig: Rig, role: Role) -> AsyncIterator[None]:
    """Programs that are started here may do what the role needs, and nothing else."""
    env = await _user(rig, role, "-@all", *(f"+{name}" for name in commands(role)))
    server, rig.backend = rig.backend, _As(env["REDIS_URL"])
    try:
        yield
    finally:
        rig.backend = server


async def test_the_commands_that_are_checked_at_the_start_are_all_that_are_ever_sent(rig: Rig, tmp_path: Path) -> None:
    """Workers and a relay that may do just these do all that they can do, and nothing is refused to them."""
    assert rig.redis is not None
    async with _programs_of(rig, "worker"):
        first = await rig.worker(limits="shared", cache_backend="redis", max_attempts=2)
    async with _programs_of(rig, "relay"):
        relay = await rig.relay()
    lost = await rig.enqueue(TEXT * 8, rate=60, idempotency_key="once", cancel_if_abandoned=30)
    await lost.follow(relay)
    await lost.begun()
    async with _programs_of(rig, "worker"):
        second = await rig.worker(limits="shared", cache_backend="redis", max_attempts=2, drain=0.1)
    first.kill()
    await lost.ended()
    retried = await rig.enqueue(TEXT, scripted={"fault": "cut=3*1"}, delay=0.1)
    await retried.follow(relay)
    await retried.ended()
    handed_over = await rig.enqueue(TEXT * 8, rate=60)
    await handed_over.follow(relay)
    await handed_over.begun()
    async with _programs_of(rig, "worker"):
        await rig.worker()
    second.terminate()
    await handed_over.ended()
    await _every_request(rig, relay)
    for name in ("worker", "relay"):
        denied = [entry for entry in await _denials(rig.redis) if entry["username"] == name]
        # How a client introduces itself, which it does without where it may not.
        assert {entry["object"] for entry in denied} <= {"client|setinfo"}


async def _denials(redis: Redis) -> list[dict[str, str]]:
    rows = await ask(redis, "ACL", "LOG", 128)
    return [{name.decode(): str(value, "utf-8") for name, value in row.items() if type(value) is bytes} for row in rows]


async def _every_request(rig: Rig, relay: Program) -> None:
    """Each address of the relay that goes to Redis."""

    async def request(method: str, path: str, status: int = 200, **more: Any) -> Any:
        async with rig.http.request(method, f"{relay.url}{path}", **more) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    job = {"model": "vllm/scripted", "prompt": "x", "params": {"metadata": {"fault": "bad_request"}}}
    said = await request("POST", "/v1/jobs", 202, json=job)
    async with rig.http.get(f"{relay.url}{said['events_url']}") as stream:
        assert b"event: done" in await stream.read()
    waiting = await request("POST", "/v1/jobs", 202, json={**job, "delay": 60, "expires_in": 600})
    await request("GET", waiting["status_url"])
    await request("POST", f"{waiting['status_url']}/interest")
    await request("POST", waiting["cancel_url"])
    await request("GET", "/v1/jobs")
    await request("GET", "/v1/jobs?state=failed")
    await request("GET", "/v1/stats")
    await request("GET", "/readyz")
    letters = await request("GET", "/v1/dead")
    assert [letter["id"] for letter in letters["dead"]] == [said["id"]], letters
    await request("POST", f"/v1/dead/{said['id']}/retry", 202)
