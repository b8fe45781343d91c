"""`deltafan doctor`: what it finds on servers that are set up well, badly, or not for us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.provider import Provider, Script, running
from deltafan.devserver.pusher import running as pusher_running
from deltafan.devserver.valkey import EmbeddedValkey
from tests.conftest import StartWorker
from tests.e2e.cli_kit import cli


async def doctor(url: str, *flags: str, **env: str) -> tuple[int, dict[str, Any]]:
    ended = await cli("doctor", "--json", *(flags or ("--no-provider",)), REDIS_URL=url, **env)
    return ended.code, {found["check"]: found for found in ended.json()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def badly_set_up() -> AsyncIterator[str]:
    async with EmbeddedValkey(extra_args=("--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb")) as server:
        yield server.url


async def test_a_good_server_passes() -> None:
    async with EmbeddedValkey(appendonly=True, extra_args=("--maxmemory", "100mb")) as server:
        code, found = await doctor(server.url)
    assert code == 0
    assert {name for name, f in found.items() if f["level"] != "ok"} == {"workers"}
    assert found["persistence"]["seen"] == "append-only file, appendfsync everysec"
    assert found["workers"]["mend"] == "start one: deltafan worker"


async def test_eviction_and_missing_persistence_are_found_and_how_to_mend_them(badly_set_up: str) -> None:
    code, found = await doctor(badly_set_up)
    assert code == 1
    assert found["eviction"]["level"] == "fail"
    assert "maxmemory-policy noeviction" in found["eviction"]["mend"]
    assert found["persistence"]["level"] == "warn"
    assert "appendonly yes" in found["persistence"]["mend"]


async def test_a_server_that_takes_no_writes_is_found_and_why(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path, extra_args=("--save", "3600 1")) as server:
        (tmp_path / "dump.rdb").mkdir()  # the snapshot cannot be put there
        with redis.Redis.from_url(server.url) as client:
            client.set("x", 1)
            client.bgsave()
            async with asyncio.timeout(20):
                while client.info("persistence")["rdb_last_bgsave_status"] != "err":
                    await asyncio.sleep(0.05)
            code, found = await doctor(server.url)
            assert (code, found["persistence"]["level"], found["role"]["level"]) == (1, "fail", "ok")
            client.replicaof("127.0.0.1", "1")
            code, found = await doctor(server.url)
        assert (code, found["role"]["level"]) == (1, "fail")
        assert "name the primary" in found["role"]["mend"]


async def test_missing_rights_are_named_and_the_rights_it_proposes_suffice(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        rules: dict[str, str] = {
            "keys": "on >p ~other:* &* +@all",
            "channels": "on >p ~* resetchannels +@all",
            "commands": "on >p ~* &* +@all -xadd -subscribe -evalsha",
        }
        for name, rule in rules.items():
            client.execute_command("ACL", "SETUSER", name, *rule.split())
        results = await asyncio.gather(*(doctor(redis_url.replace("//", f"//{name}:p@")) for name in rules))
        seen = [found["rights"]["seen"] for _, found in results]
        assert [code for code, _ in results] == [1, 1, 1]
        assert seen == ["refused: keys deltafan:*", "refused: channels deltafan:*", "refused: EVALSHA, XADD, SUBSCRIBE"]
        proposed = results[0][1]["rights"]["mend"].split("<user> ")[1]
        client.execute_command("ACL", "SETUSER", "ours", "on", ">p", *proposed.split())
        code, found = await doctor(redis_url.replace("//", "//ours:p@"))
        assert (code, found["rights"]["level"]) == (0, "ok")
        for name in (*rules, "ours"):
            client.execute_command("ACL", "DELUSER", name)


async def test_it_leaves_no_key_behind(redis_url: str) -> None:
    await doctor(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


async def test_queues_dead_letters_and_workers_are_counted(
    redis_url: str, queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await queue.enqueue(model="m", prompt="x", queue="idle")
    worker = await start_worker()
    job = await queue.enqueue(model="m", prompt="x", params={"metadata": {"fault": "bad_request"}})
    assert [event.type async for event in job.events()][-1] == "done"
    code, found = await doctor(redis_url, DELTAFAN_QUEUES="default")
    assert code == 0
    assert found["dead"]["seen"] == "default: 1 jobs failed for good"
    assert found["workers"]["level"] == "ok"
    assert (await cli("doctor", "--this-host", REDIS_URL=redis_url)).code == 0
    await worker.drain()
    assert (await cli("doctor", "--this-host", REDIS_URL=redis_url)).code == 1
    code, found = await doctor(redis_url, DELTAFAN_QUEUES="idle")
    assert code == 1
    assert found["queue"]["seen"] == "idle: 1 waiting, 0 running, 0 delayed, and no worker"


async def test_a_provider_is_asked_with_our_key(redis_url: str, provider: Provider) -> None:
    async with running(Script(require_key="right-key")) as strict:
        url = {"OPENAI_BASE_URL": strict.base_url}
        results = await asyncio.gather(
            doctor(redis_url, "--provider", **url, OPENAI_API_KEY="right-key"),
            doctor(redis_url, "--provider", **url, OPENAI_API_KEY="wrong-key"),
            doctor(redis_url, "--provider", OPENAI_BASE_URL="http://127.0.0.1:1/v1", OPENAI_API_KEY="k"),
            doctor(redis_url, "--provider"),
        )
    assert [found["provider"]["level"] for _, found in results] == ["ok", "fail", "fail", "fail"]
    assert "refuses the key (401)" in results[1][1]["provider"]["seen"]
    assert results[3][1]["provider"]["mend"] == "set OPENAI_API_KEY"


async def test_pusher_is_asked_with_our_credentials(redis_url: str) -> None:
    async with pusher_running() as emulator:
        right = emulator.variables
        results = await asyncio.gather(
            doctor(redis_url, **right),
            doctor(redis_url, **right | {"PUSHER_SECRET": "another-secret"}),
            doctor(redis_url, **right | {"PUSHER_PORT": "1"}),
            doctor(redis_url),
        )
    assert [found.get("pusher", {}).get("level") for _, found in results] == ["ok", "fail", "fail", "ok"]
    assert "PUSHER_SECRET" in results[1][1]["pusher"]["mend"]


async def test_what_cannot_be_checked_is_a_finding_too() -> None:
    code, found = await doctor("redis://127.0.0.1:1/0")
    assert (code, found["redis"]["level"]) == (1, "fail")
    code, found = await doctor("redis://127.0.0.1:1/0", DELTAFAN_LEASE="0.1")
    assert (code, found["settings"]["seen"]) == (1, "DELTAFAN_LEASE: must be greater than or equal to 1")


async def test_credentials_that_a_relay_would_refuse_are_found(redis_url: str) -> None:
    code, found = await doctor(redis_url, DELTAFAN_TOKEN_KEYS="k1=short")
    assert code == 1
    assert "entry 1: the secret must be 32 or more" in found["settings"]["seen"]
    assert "short" not in found["settings"]["seen"]
    code, found = await doctor(redis_url, DELTAFAN_API_KEYS="a:bogus=x")
    assert (code, found["settings"]["level"]) == (1, "fail")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster() as cluster:
        yield cluster


async def on_cluster(cluster: EmbeddedCluster, **env: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """What is found, by check: level and text."""
    ended = await cli("doctor", "--json", "--no-provider", REDIS_URL=cluster.url, **env)
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in ended.json():
        found.setdefault(finding["check"], []).append((finding["level"], finding["seen"]))
    return ended.code, found


async def test_on_a_cluster_each_line_names_its_node_and_bad_settings_are_warned_of(cluster: EmbeddedCluster) -> None:
    code, found = await on_cluster(cluster, DELTAFAN_PARTITIONS="1")
    assert code == 0
    names = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
    for check in ("version", "role", "eviction", "memory", "persistence", "coverage"):
        told = " ".join(seen for _, seen in found[check])
        assert told.startswith("every node: ") or all(f"{name}: " in told for name in names)
    assert [level for level, _ in found["partitions"]] == ["warn"]
    assert [level for level, _ in found["coverage"]] == ["warn"]
    assert "cluster-require-full-coverage yes" in found["coverage"][0][1]


@pytest.mark.parametrize("full_coverage", ["no", "yes"])
async def test_a_node_that_is_away_fails_and_the_other_checks_go_on(
    cluster: EmbeddedCluster, full_coverage: str
) -> None:
    for place in range(3):
        async with cluster.client(place) as client:
            await client.config_set("cluster-require-full-coverage", full_coverage)
    away = await cluster.owner_of(0)
    await cluster.kill(away)
    try:
        code, found = await on_cluster(cluster, DELTAFAN_PARTITIONS="8", DELTAFAN_COMMAND_TIMEOUT="2")
    finally:
        await cluster.start(away)
        await cluster.whole()
    assert code == 1
    assert found["redis"][0][0] == "ok"
    assert found["node"] == [("fail", f"127.0.0.1:{cluster.nodes[away].port} does not answer")]
    assert {"version", "role", "eviction", "memory", "persistence", "rights", "queue", "pusher"} <= found.keys()
    if full_coverage == "no":
        assert any(level == "warn" and "partitions 0" in seen for level, seen in found["queue"])


async def test_a_full_server_fails() -> None:
    async with EmbeddedValkey() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("x", bytes(8 * 2**20))
            client.config_set("maxmemory", "4mb")
        code, found = await doctor(server.url)
    assert (code, found["memory"]["level"]) == (1, "fail")
    assert found["memory"]["seen"].endswith("full: new jobs are refused")


async def test_what_is_no_redis_is_not_mended_by_a_password() -> None:
    async with running(Script()) as http:
        address = http.base_url.partition("://")[2].partition("/")[0]
        code, found = await doctor(f"redis://{address}/0")
    assert (code, found["redis"]["level"]) == (1, "fail")
    assert "does not speak Redis's protocol" in found["redis"]["seen"]
    assert "password" not in found["redis"]["mend"]
