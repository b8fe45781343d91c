"""The doctor's checks of the queues: depth, dead letters, and whether workers live."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import GROUP, Partition
from deltafan.cli.finding import Finding
from deltafan.cli.redis_checks import ask
from deltafan.errors import BrokerUnavailable
from deltafan.queues import AsyncQueue


@dataclass(slots=True)
class _Depth:
    waiting: int = 0
    running: int = 0
    delayed: int = 0
    dead: int = 0


async def check_queue(queue: AsyncQueue, name: str) -> list[Finding]:
    """One queue: what is in it, and who works on it. Of a cluster, the partitions that can be reached are counted.

    :raises BrokerUnavailable: none can be reached.
    """
    depth = _Depth()
    workers: dict[str, dict[str, Any]] = {}
    numbers = range(queue.settings.partitions)
    looks = (_look(queue.connections.commands, name, Partition(number), depth, workers) for number in numbers)
    away: list[int] = []
    for number, problem in zip(numbers, await asyncio.gather(*looks, return_exceptions=True), strict=True):
        if isinstance(problem, BrokerUnavailable) and len(away) + 1 < len(numbers):
            away.append(number)
        elif problem is not None:
            raise problem
    found = [_work(name, depth, bool(workers)), _dead(name, depth.dead), _workers(name, workers)]
    return [*found, _away(name, away)] if away else found


async def _look(redis: Redis, name: str, keys: Partition, depth: _Depth, workers: dict[str, dict[str, Any]]) -> None:
    with redis_errors():
        for stream in keys.queues(name):
            await _count(redis, stream, depth)
            workers |= await _living(redis, keys, stream)
        depth.delayed += int(await redis.zcard(keys.delayed(name)))
        depth.dead += int(await redis.xlen(keys.dead(name)))


async def lives_here(queue: AsyncQueue, name: str) -> bool:
    """Whether a worker of this host has a heartbeat."""
    redis, keys, host = queue.connections.commands, Partition(0), socket.gethostname()
    with redis_errors():
        for stream in keys.queues(name):
            for details in (await _living(redis, keys, stream)).values():
                if details.get("host") == host:
                    return True
    return False


async def _count(redis: Redis, stream: str, depth: _Depth) -> None:
    held = 0
    for group in await _rows(redis, "GROUPS", stream):
        if group["name"] == GROUP:
            held = int(group["pending"])
    depth.running += held
    depth.waiting += max(0, int(await redis.xlen(stream)) - held)


async def _living(redis: Redis, keys: Partition, stream: str) -> dict[str, dict[str, Any]]:
    """The consumers of a stream that have a heartbeat, and what it says of them."""
    found: dict[str, dict[str, Any]] = {}
    for consumer in await _rows(redis, "CONSUMERS", stream, GROUP):
        beat: Any = await redis.get(keys.worker(consumer["name"]))
        if beat is not None:
            found[consumer["name"]] = orjson.loads(beat)
    return found


async def _rows(redis: Redis, what: str, *args: str) -> list[dict[str, Any]]:
    """The rows of an XINFO; none where there is no such stream or group yet."""
    try:
        rows: Any = await ask(redis, f"XINFO {what}", *args)
    except ResponseError:
        return []
    return [_row(row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))) for row in rows]


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    return {text(name): text(value) for name, value in row.items()}


def _work(name: str, depth: _Depth, served: bool) -> Finding:
    seen = f"{name}: {depth.waiting} waiting, {depth.running} running, {depth.delayed} delayed"
    if depth.waiting and not served:
        return Finding("queue", "fail", f"{seen}, and no worker", "start one: deltafan worker")
    return Finding("queue", "ok", seen)


def _away(name: str, numbers: list[int]) -> Finding:
    seen = f"{name}: partitions {', '.join(map(str, numbers))} cannot be reached and are not counted"
    return Finding("queue", "warn", seen, "bring their node back, or have its replica take its place")


def _dead(name: str, dead: int) -> Finding:
    if not dead:
        return Finding("dead", "ok", f"{name}: none")
    mend = f"deltafan dead list --queue {name}, then dead retry or dead drop"
    return Finding("dead", "warn", f"{name}: {dead} jobs failed for good", mend)


def _workers(name: str, workers: dict[str, dict[str, Any]]) -> Finding:
    if not workers:
        return Finding("workers", "warn", f"{name}: none lives", "start one: deltafan worker")
    running = sum(int(details.get("running", 0)) for details in workers.values())
    hosts = ", ".join(sorted({str(details.get("host")) for details in workers.values()}))
    return Finding("workers", "ok", f"{name}: {len(workers)} live on {hosts}, with {running} jobs")
