"""The doctor's checks of Redis: what it is, how it is set up, and whether we may do what we need."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from deltafan.broker.address import redacted
from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.misdirected import NODE, SENTINEL
from deltafan.broker.rights import MEND, missing_rights
from deltafan.broker.startup import EVICTION_MEND, NO_EVICTION, what_is_lost
from deltafan.cli.finding import Finding
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.queues import AsyncQueue

MIN_REDIS: Final = (7, 0)
MIN_VALKEY: Final = (7, 2)


async def check_redis(queue: AsyncQueue) -> list[Finding]:
    """Everything that can be learnt with the rights that we have."""
    redis = queue.connections.commands
    url = redacted(queue.settings.url)
    try:
        with redis_errors():
            await (redis.primaries() if isinstance(redis, ClusterRedis) else ask(redis, "PING"))
        answers = Finding("redis", "ok", f"{url} answers")
    except BrokerUnavailable as error:  # or it refuses even this: where it cannot save, it does
        answers = Finding("redis", "fail", f"{url}: {error}", "start it, or set REDIS_URL to where it is")
    except ConfigurationError as error:
        refused = isinstance(error.__cause__, AuthenticationError | NoPermissionError)
        mend = "put user and password in REDIS_URL" if refused else "see docs/operations.md for what REDIS_URL can be"
        return [Finding("redis", "fail", f"{url}: {error}", mend)]
    if answers.level == "fail":
        return [answers, *(await _looked_at(redis) or ())]
    if not isinstance(redis, ClusterRedis):
        other = await _other_kind(redis)
        if other is not None:
            return [Finding("redis", "fail", f"{url}: {other}", "see docs/operations.md for what REDIS_URL can be")]
        return [answers, *(await _looked_at(redis) or ()), await _rights(queue.connections)]
    return [answers, *await _check_nodes(redis, queue.settings.partitions), await _rights(queue.connections)]


async def _other_kind(redis: Redis) -> str | None:
    """What answers, when it is not the single server that the URL says; `None` also where we may not ask."""
    try:
        info = await _info(redis) or {}
    except BrokerUnavailable:
        return None
    mode = info.get("redis_mode", info.get("server_mode"))
    return {"sentinel": f"this is a sentinel: {SENTINEL}", "cluster": NODE}.get(mode or "")


async def _check_nodes(redis: ClusterRedis, partitions: int) -> list[Finding]:
    """Every node that serves slots, by name; what all say alike is said once."""
    clients = {f"{host}:{port}": redis.client_of((host, port)) for host, port in redis.slots.primaries}
    looks = (_looked_at(client, of_cluster=True) for client in clients.values())
    found = dict(zip(clients, await asyncio.gather(*looks), strict=True))
    findings = [
        Finding("node", "fail", f"{name} does not answer", "start it, or have its replica take its place")
        for name, told in found.items()
        if told is None
    ]
    by_check: dict[str, dict[str, Finding]] = {}
    for name, told in found.items():
        for finding in told or ():
            by_check.setdefault(finding.check, {})[name] = finding
    everyone = "every node that answers" if findings else "every node"
    for told_by in by_check.values():
        alike, *different = set(told_by.values())
        findings += (
            [replace(finding, seen=f"{name}: {finding.seen}") for name, finding in told_by.items()]
            if different
            else [replace(alike, seen=f"{everyone}: {alike.seen}")]
        )
    return [*findings, _partitions(partitions, len(clients))]


def _partitions(partitions: int, nodes: int) -> Finding:
    seen = f"{partitions} on {nodes} nodes"
    if partitions >= nodes:
        return Finding("partitions", "ok", seen)
    mend = (
        f"set DELTAFAN_PARTITIONS, for everyone who enqueues, follows and works, to a few a node, such as {4 * nodes}"
    )
    return Finding("partitions", "warn", f"{seen}: some nodes have no jobs", mend)


async def _looked_at(redis: Redis, *, of_cluster: bool = False) -> list[Finding] | None:
    """What one server is, and how it is set up; `None`: it does not answer."""
    try:
        info = await _info(redis)
        if info is None:
            return [Finding("server", "warn", "INFO is not allowed", "allow it, so that this can look: ACL +info")]
        seen = [_version(info), _role(info), _eviction(info), _memory(info), await _persistence(redis, info)]
        return [*seen, *(await _coverage(redis) if of_cluster else ())]
    except BrokerUnavailable:
        return None


async def ask(redis: Redis, *words: str | int) -> Any:
    """A command as Redis's documentation writes it."""
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def _info(redis: Redis) -> dict[str, str] | None:
    """The fields of INFO, as the server writes them."""
    try:
        with redis_errors():
            text: Any = await ask(redis, "INFO")
    except ConfigurationError:
        return None
    if isinstance(text, dict):
        return {str(name): str(value) for name, value in text.items()}
    pairs = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _version(info: Mapping[str, str]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = info.get("valkey_version") or info.get("redis_version", "")
    needed = MIN_VALKEY if name == "Valkey" else MIN_REDIS
    found = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if found >= needed:
        return Finding("version", "ok", f"{name} {text}")
    wanted = ".".join(map(str, needed))
    return Finding("version", "fail", f"{name} {text or 'of unknown version'}", f"use {name} {wanted} or newer")


def _role(info: Mapping[str, str]) -> Finding:
    if info.get("role") != "slave":
        return Finding("role", "ok", "primary")
    mend = "name the primary in REDIS_URL, or have sentinels name it: redis+sentinel://"
    return Finding("role", "fail", "a replica, which takes no writes", mend)


def _eviction(info: Mapping[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    lost = what_is_lost(policy)
    if lost is None:
        return Finding("eviction", "ok", policy)
    return Finding("eviction", "fail" if policy.startswith("allkeys") else "warn", f"{policy}: {lost}", EVICTION_MEND)


def _memory(info: Mapping[str, str]) -> Finding:
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    shown = f"{used / 2**20:.0f} MiB used"
    if not most:
        mend = "set maxmemory below what the machine has, so that a full Redis refuses writes and is not killed"
        return Finding("memory", "warn", f"{shown}, no maxmemory", mend)
    shown = f"{shown} of {most / 2**20:.0f} MiB"
    if used - int(info.get("mem_not_counted_for_evict", 0)) > most and info.get("maxmemory_policy") == NO_EVICTION:
        mend = "raise maxmemory, or shorten DELTAFAN_RETENTION"
        return Finding("memory", "fail", f"{shown}, full: new jobs are refused", mend)
    if used > 0.9 * most:
        return Finding("memory", "warn", shown, "raise maxmemory, or shorten DELTAFAN_RETENTION")
    return Finding("memory", "ok", shown)


async def _persistence(redis: Redis, info: Mapping[str, str]) -> Finding:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        seen = "the last snapshot failed: until one succeeds, Redis may take no writes"
        return Finding("persistence", "fail", seen, "look at Redis's disk and log, then BGSAVE")
    if info.get("aof_enabled") != "1":
        mend = "appendonly yes, appendfsync everysec: a crash then loses a second at most"
        return Finding("persistence", "warn", "no append-only file: a crash loses all since the last snapshot", mend)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding("persistence", "fail", "the append-only file cannot be written", "look at Redis's disk and log")
    sync = await _configured(redis, "appendfsync")
    if sync == "no":
        return Finding("persistence", "warn", "append-only file, appendfsync no", "CONFIG SET appendfsync everysec")
    return Finding("persistence", "ok", "append-only file" + (f", appendfsync {sync}" if sync else ""))


async def _coverage(redis: Redis) -> list[Finding]:
    """Nothing where we may not ask."""
    match await _configured(redis, "cluster-require-full-coverage"):
        case "yes":
            seen = "cluster-require-full-coverage yes: the loss of one node without a replica stops all"
            return [Finding("coverage", "warn", seen, "CONFIG SET cluster-require-full-coverage no, on every node")]
        case "no":
            return [Finding("coverage", "ok", "cluster-require-full-coverage no")]
    return []


async def _configured(redis: Redis, name: str) -> str | None:
    """A setting of the server; `None` when we may not ask, as on many hosted ones."""
    try:
        with redis_errors():
            answer: Any = await ask(redis, "CONFIG", "GET", name)
    except (ConfigurationError, ResponseError):
        return None
    value = answer.get(name, answer.get(name.encode())) if isinstance(answer, dict) else (answer or [b"", b""])[1]
    return value.decode() if isinstance(value, bytes) else str(value)


async def _rights(connections: Connections) -> Finding:
    """Whether the server lets us run every command that workers and relays need."""
    try:
        refused = await missing_rights(connections)
    except (BrokerUnavailable, ConfigurationError) as error:
        return Finding("rights", "fail", f"cannot be tried: {error}", "mend that, and look again")
    if not refused:
        return Finding("rights", "ok", "every command, key and channel that deltafan needs")
    return Finding("rights", "fail", f"refused: {', '.join(refused)}", MEND)
