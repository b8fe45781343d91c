"""The doctor's checks of Redis: what it is, how it is set up, and whether we may do what we need."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.connections import Connections, redacted, redis_errors
from deltafan.broker.keys import GROUP, Partition
from deltafan.cli.finding import Finding
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.queues import AsyncQueue

MIN_REDIS: Final = (7, 0)
MIN_VALKEY: Final = (7, 2)
_SCRATCH_SECONDS: Final = 60


async def check_redis(queue: AsyncQueue) -> list[Finding]:
    """Everything that can be learnt with the rights that we have."""
    redis = queue.connections.commands
    url = redacted(queue.settings.url)
    try:
        with redis_errors():
            await ask(redis, "PING")
    except BrokerUnavailable as error:
        return [Finding("redis", "fail", f"{url}: {error}", "start it, or set REDIS_URL to where it is")]
    except ConfigurationError as error:
        return [Finding("redis", "fail", f"{url}: {error}", "put user and password in REDIS_URL")]
    findings = [Finding("redis", "ok", f"{url} answers")]
    info = await _info(redis)
    if info is None:
        findings.append(Finding("server", "warn", "INFO is not allowed", "allow it, so that this can look: ACL +info"))
    else:
        findings += [_version(info), _eviction(info), _memory(info), await _persistence(redis, info)]
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


def _eviction(info: Mapping[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return Finding("eviction", "ok", "noeviction")
    mend = "CONFIG SET maxmemory-policy noeviction, and in the configuration file too"
    if policy.startswith("allkeys"):
        return Finding("eviction", "fail", f"{policy}: when memory is full, queued jobs are thrown away", mend)
    return Finding("eviction", "warn", f"{policy}: when memory is full, records and logs are thrown away", mend)


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
    """Whether the server lets us run every command that we need, by running each on keys of our own."""
    redis, keys = connections.commands, Partition(0)
    scratch = f"doctor-{secrets.token_hex(8)}"
    refused: list[str] = []
    for words in _needed(keys.job(scratch), keys.log(scratch), keys.delayed(scratch), keys.live(scratch)):
        try:
            with redis_errors():
                await ask(redis, *words)
        except ConfigurationError as error:
            refused.append(_what_was_refused(str(words[0]), str(error)))
        except ResponseError:
            continue  # it ran, which is what we asked
    try:
        await _subscribe(connections, keys.live(scratch))
    except ConfigurationError as error:
        refused.append(_what_was_refused("SUBSCRIBE", str(error)))
    if not refused:
        return Finding("rights", "ok", "every command, key and channel that deltafan needs")
    mend = (
        "ACL SETUSER <user> ~deltafan:* &deltafan:* "
        "+@read +@write +@stream +@sortedset +@hash +@string +@scripting +@pubsub +@connection +time +info"
    )
    return Finding("rights", "fail", f"refused: {', '.join(dict.fromkeys(refused))}", mend)


async def _subscribe(connections: Connections, channel: str) -> None:
    connection = connections.subscription()
    try:
        with redis_errors():
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SUBSCRIBE", channel)
            # With a timeout of its own, redis-py gives None for silence; without, the connection's limit raises.
            await connection.read_response()
    finally:
        await connection.disconnect()


def _what_was_refused(name: str, message: str) -> str:
    if "channel" in message:
        return "channels deltafan:*"
    return "keys deltafan:*" if "key" in message else name


def _needed(record: str, log: str, delayed: str, channel: str) -> Iterator[tuple[str | int, ...]]:
    """One harmless call of each command that the scripts and the clients use. All keys expire by themselves."""
    yield "EVAL", "return redis.call('TIME')", 1, record
    yield "EVALSHA", "0" * 40, 1, record
    yield ("TIME",)
    yield "HSET", record, "state", "doctor"
    yield "PEXPIRE", record, _SCRATCH_SECONDS * 1000
    yield "HSETNX", record, "state", "doctor"
    yield "HINCRBY", record, "n", 1
    yield "HGET", record, "state"
    yield "HMGET", record, "state"
    yield "HSTRLEN", record, "metadata"
    yield "EXISTS", record
    yield "XADD", log, "1-1", "e", "doctor"
    yield "PEXPIRE", log, _SCRATCH_SECONDS * 1000
    yield "XGROUP", "CREATE", log, GROUP, "0"
    yield "XREADGROUP", "GROUP", GROUP, "doctor", "COUNT", 1, "STREAMS", log, ">"
    yield "XPENDING", log, GROUP
    yield "XINFO", "CONSUMERS", log, GROUP
    yield "XINFO", "GROUPS", log
    yield "XACK", log, GROUP, "1-1"
    yield "XRANGE", log, "-", "+"
    yield "XREVRANGE", log, "+", "-"
    yield "XLEN", log
    yield "XDEL", log, "1-1"
    yield "ZADD", delayed, 1, "doctor"
    yield "PEXPIRE", delayed, _SCRATCH_SECONDS * 1000
    yield "ZSCORE", delayed, "doctor"
    yield "ZCARD", delayed
    yield "ZRANGE", delayed, 0, 0
    yield "ZRANGEBYSCORE", delayed, "-inf", "+inf"
    yield "ZREVRANGEBYSCORE", delayed, "+inf", "-inf"
    yield "ZREM", delayed, "doctor"
    yield "PUBLISH", channel, "doctor"
    yield "PUBSUB", "NUMSUB", channel
    yield "PERSIST", record
    yield "DEL", record
    yield "SET", record, "doctor", "PX", _SCRATCH_SECONDS * 1000
    yield "GET", record
    yield "DEL", log
    yield "DEL", delayed
    yield "DEL", record
