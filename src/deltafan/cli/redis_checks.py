"""The doctor's checks of Redis: what it is, how it is set up, and whether we may do what we need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.address import redacted
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.rights import MEND, missing_rights
from deltafan.broker.startup import EVICTION_MEND, what_is_lost
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
            await ask(redis, "PING")
        answers = Finding("redis", "ok", f"{url} answers")
    except BrokerUnavailable as error:  # or it refuses even this: where it cannot save, it does
        answers = Finding("redis", "fail", f"{url}: {error}", "start it, or set REDIS_URL to where it is")
    except ConfigurationError as error:
        return [Finding("redis", "fail", f"{url}: {error}", "put user and password in REDIS_URL")]
    findings = [answers]
    try:
        info = await _info(redis)
    except BrokerUnavailable:
        return findings
    if info is None:
        findings.append(Finding("server", "warn", "INFO is not allowed", "allow it, so that this can look: ACL +info"))
    else:
        findings += [_version(info), _role(info), _eviction(info), _memory(info), await _persistence(redis, info)]
    findings.append(await _rights(queue.connections))
    return findings


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
    refused = await missing_rights(connections)
    if not refused:
        return Finding("rights", "ok", "every command, key and channel that deltafan needs")
    return Finding("rights", "fail", f"refused: {', '.join(refused)}", MEND)
