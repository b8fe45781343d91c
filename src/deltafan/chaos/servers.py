"""The Redis of a soak: a single server, a cluster, or a pair behind sentinels; and what can befall it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis

from deltafan.chaos.schedule import CLUSTER, SENTINEL, VALKEY
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.sentinel import EmbeddedSentinel
from deltafan.devserver.valkey import EmbeddedValkey

Server = EmbeddedValkey | EmbeddedCluster | EmbeddedSentinel
PARTITIONS: Final = {VALKEY: 1, CLUSTER: 6, SENTINEL: 1}
WORDS: Final = {
    VALKEY: "a Valkey with appendfsync always",
    CLUSTER: "a Redis Cluster of three primaries with a replica each",
    SENTINEL: "a primary and a replica behind three sentinels",
}


PAUSE_MS: Final = 10_000
"""How long writes may be held back for a failover of the sentinels."""


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[Server]:
    """A Redis of a kind, until the end of the block."""
    if kind == CLUSTER:
        async with EmbeddedCluster(replicas=True) as cluster:
            yield cluster
    elif kind == SENTINEL:
        async with EmbeddedSentinel() as sentinel:
            yield sentinel
    else:
        async with EmbeddedValkey(appendonly=True, extra_args=("--appendfsync", "always")) as valkey:
            yield valkey


def nodes(server: Server) -> list[EmbeddedValkey]:
    """All servers that hold data."""
    return [server] if isinstance(server, EmbeddedValkey) else server.nodes


async def crash(server: Server) -> EmbeddedValkey | None:
    """SIGKILL of a single server. Gives it, to be started again."""
    if not isinstance(server, EmbeddedValkey):
        return None
    await server.kill()
    return server


async def fail_over(server: Server, partition: int) -> None:
    """Have a replica take its primary's place, in order."""
    if isinstance(server, EmbeddedCluster):
        await server.failover(partition)
        await server.whole()
    elif isinstance(server, EmbeddedSentinel):
        async with server.unhurried():
            async with _writes_held_back(server):
                await server.failover()
            await server.whole()


@asynccontextmanager
async def _writes_held_back(server: EmbeddedSentinel) -> AsyncIterator[None]:
    """Sentinels hand over without asking whether the replica has everything: here it has, as in an operator's hands."""
    before = await server.primary()
    async with server.client(before) as primary:
        await primary.client_pause(PAUSE_MS, all=False)
        try:
            async with asyncio.timeout(PAUSE_MS / 1000):
                while not await _caught_up(primary):  # noqa: ASYNC110 - nothing would set an event
                    await asyncio.sleep(0.02)
                yield
        finally:
            await primary.client_unpause()


async def _caught_up(primary: Redis) -> bool:
    told: Any = await primary.info("replication")
    return bool(told["connected_slaves"] == 1 and told["slave0"]["offset"] == told["master_repl_offset"])


async def migrate(server: Server, partition: int) -> None:
    """Move a partition's slot to another primary of a cluster."""
    if isinstance(server, EmbeddedCluster):
        slot = server.slot(partition)
        owners = {await server.owner_of(other) for other in range(PARTITIONS[CLUSTER])}
        others = sorted(owners - {await server.owner(slot)})
        if others:
            await server.migrate(slot, others[0])
            await server.whole()


async def kill_clients(server: Server, *kinds: str) -> None:
    """`CLIENT KILL TYPE` at every node."""
    for node in nodes(server):
        async with Redis.from_url(node.url, socket_timeout=2.0) as client:
            for kind in kinds:
                await client.client_kill_filter(_type=kind)


async def flush_scripts(server: Server) -> None:
    """`SCRIPT FLUSH` at every node."""
    for node in nodes(server):
        async with Redis.from_url(node.url, socket_timeout=2.0) as client:
            await client.script_flush()
