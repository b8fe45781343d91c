"""The kinds of Redis that a fault test runs on: what they have in common, and how one is left clean for the next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections
from deltafan.broker.keys import Partition
from deltafan.chaos.schedule import CLUSTER, SENTINEL, VALKEY
from deltafan.chaos.servers import Server, nodes
from deltafan.devserver.agreement import client_of
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.sentinel import EmbeddedSentinel
from deltafan.devserver.valkey import EmbeddedValkey

__all__ = ["CLUSTER", "PARTITIONS", "SENTINEL", "VALKEY", "fresh", "on_all", "primaries", "streams"]
PARTITIONS: Final = {VALKEY: 1, CLUSTER: 4, SENTINEL: 1}


async def primaries(server: Server) -> list[EmbeddedValkey]:
    """The servers that take writes now."""
    if isinstance(server, EmbeddedSentinel):
        return [server.nodes[await server.primary()]]
    if isinstance(server, EmbeddedValkey):
        return [server]
    found = []
    for node in nodes(server):
        if node.running:
            async with client_of(node) as client:
                role: Any = await client.execute_command("ROLE")  # type: ignore[no-untyped-call]
            if role[0] == b"master":
                found.append(node)
    return found


@asynccontextmanager
async def _client(node: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(node.url, single_connection_client=True) as client:
        yield client


async def on_all(server: Server, action: Callable[[Redis], Awaitable[Any]]) -> list[Any]:
    """Do something at every server that takes writes, by a plain client of one connection."""
    answers = []
    for node in await primaries(server):
        async with _client(node) as client:
            answers.append(await action(client))
    return answers


async def fresh(server: Server) -> None:
    """Bring back what a test has killed, and have it forget everything."""
    if isinstance(server, EmbeddedCluster | EmbeddedSentinel):
        for node in nodes(server):
            if not node.running:
                await node.start()
        await server.whole()

    async def forget(client: Redis) -> None:
        await client.flushall()
        await client.script_flush()
        await client.config_resetstat()

    await on_all(server, forget)


def streams(connections: Connections, queue: str = "default") -> list[str]:
    """A queue's streams in all partitions."""
    return [stream for n in range(connections.settings.partitions) for stream in Partition(n).queues(queue)]


async def numsub(redis: Redis, channel: str) -> int:
    """Who listens to a live channel."""
    if isinstance(redis, ClusterRedis):
        answer: Any = await redis.execute_command("PUBSUB", "SHARDNUMSUB", channel)
        return int(answer[1])
    [(_, count)] = await redis.pubsub_numsub(channel)
    return int(count)
