"""What Redis holds when everything has ended: does it agree with the outcome, and is nothing left behind?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import GROUP, Partition, partition
from deltafan.broker.status import read_status
from deltafan.chaos import oracle
from deltafan.errors import JobNotFound
from deltafan.events import Event
from deltafan.transcript import Transcript
from deltafan.wire import decode

STATE_OF = {"cancelled": "cancelled", "expired": "expired", "error": "failed"}
"""The state of a job whose `done` gives one of these reasons; any other is `done`."""
LASTING = ("queue:", "dead:", "jobs:", "expiries", "delayed:", "deadlines")
"""Keys that need no expiry of their own: they belong to a queue or a tenant, and are emptied as jobs go."""


async def record_problems(connections: Connections, job_id: str, transcript: Transcript) -> list[str]:
    """Whether a job's record and dead letter agree with what its followers saw.

    :raises BrokerUnavailable: Redis cannot be reached.
    """
    try:
        status = await read_status(connections.commands, job_id)
    except JobNotFound:
        return ["has no record"]
    problems = oracle.failure_problems(status)
    done = transcript.done
    if done is None:
        return problems + ([f"its record says {status.state}, and nobody saw a done"] if status.has_ended else [])
    state = STATE_OF.get(done.finish_reason, "done")
    if status.state != state:
        problems.append(f"its record says {status.state}, its done {done.finish_reason}")
    if status.attempt != transcript.attempt:
        problems.append(f"its record says attempt {status.attempt}, its log {transcript.attempt}")
    buried = job_id in await _buried(connections, job_id, status.queue)
    if buried != (state == "failed"):
        problems.append(f"it is {state} and {'has a' if buried else 'has no'} dead letter")
    return problems


async def read_log(connections: Connections, job_id: str) -> list[Event]:
    """A job's log as Redis holds it, nothing merged."""
    with redis_errors():
        entries: Any = await connections.commands.xrange(partition(job_id).log(job_id))
    events = (decode(fields[b"e"]) for _, fields in entries)
    return [event for event in events if event is not None]


async def _buried(connections: Connections, job_id: str, queue: str) -> list[str]:
    with redis_errors():
        letters: Any = await connections.commands.xrange(partition(job_id).dead(queue))
    return [fields.get(b"id", b"").decode() for _, fields in letters]


async def queue_problems(connections: Connections, queues: Iterable[str] = ("default",)) -> list[str]:
    """Whether anything still waits, runs or is unacknowledged, when every job has ended."""
    problems: list[str] = []
    redis = connections.commands
    for number in range(connections.settings.partitions):
        keys = Partition(number)
        for queue in queues:
            for stream in keys.queues(queue):
                with redis_errors():
                    if waiting := await redis.xlen(stream):
                        problems.append(f"{stream} holds {waiting} entries")
                    groups: Any = await redis.xinfo_groups(stream) if await redis.exists(stream) else []
                pending = sum(group["pending"] for group in groups if group["name"] == GROUP.encode())
                if pending:
                    problems.append(f"{stream} has {pending} unacknowledged entries")
            with redis_errors():
                if delayed := await redis.zcard(keys.delayed(queue)):
                    problems.append(f"{keys.delayed(queue)} holds {delayed} jobs")
        with redis_errors():
            if deadlines := await redis.zcard(keys.deadlines):
                problems.append(f"{keys.deadlines} holds {deadlines} jobs")
    return problems


async def expiry_problems(connections: Connections) -> list[str]:
    """Keys of ours that would stay for ever."""
    problems: list[str] = []
    redis = connections.commands
    with redis_errors():
        for server in await redis.primaries() if isinstance(redis, ClusterRedis) else [redis]:
            async for found in server.scan_iter(match="deltafan:*", count=1000):
                name = found.decode("utf-8", "replace")
                if not name.partition("}:")[2].startswith(LASTING) and await server.ttl(found) == -1:
                    problems.append(f"{name} never expires")
    return problems


def of_servers(client: Mapping[str, str]) -> bool:
    """Whether a connection is one that servers have among themselves: of replicas, primaries and sentinels."""
    return bool(set("MS") & set(client["flags"])) or client["name"].startswith("sentinel-")


async def connection_problems(url: str, patience: float) -> list[str]:
    """Connections at a Redis that nobody should have any more.

    :param patience: seconds in which the server may notice that they have been closed.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    async with Redis.from_url(url) as redis:
        own = await redis.client_id()
        while True:
            with redis_errors():
                clients: Any = await redis.client_list()
            left = [client for client in clients if client["id"] != str(own) and not of_servers(client)]
            if not left or loop.time() > until:
                return [f"a connection from {client['addr']} is open ({client['cmd']})" for client in left]
            await asyncio.sleep(0.1)
