"""An embedded Redis Cluster: real servers of one's own on the loopback interface, which do not outlive this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from redis.asyncio import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import RedisError

from deltafan.broker.keys import Partition
from deltafan.broker.slots import slot_of
from deltafan.devserver.agreement import ask, client_of, until
from deltafan.devserver.valkey import EmbeddedValkey, free_port
from deltafan.devserver.watched import HOST
from deltafan.errors import BrokerUnavailable

NODE_TIMEOUT_MS: Final = 1000
"""Milliseconds after which the others take a silent primary for lost, and a replica takes its place."""
_TRIES: Final = 5
_KEYS_AT_ONCE: Final = 50


class EmbeddedCluster:
    """Primaries with all hash slots in equal shares, from entering `async with` to leaving it.

    Nodes are named by their place in `nodes`: first the primaries, then a replica of each. Every node keeps an
    append-only file, so that what it was told survives `kill` and `start`.

    :param replicas: give each primary a replica, which takes its place when it is lost.
    :param binary: a Valkey or Redis server; None is the one that the `embedded` extra brings.
    """

    def __init__(self, primaries: int = 3, *, replicas: bool = False, binary: Path | None = None) -> None:
        self.nodes: list[EmbeddedValkey] = []
        self._primaries = primaries
        self._replicas = replicas
        self._binary = binary
        self._buses: list[int] = []

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"

    async def __aenter__(self) -> EmbeddedCluster:
        try:
            for _ in range(self._primaries * (2 if self._replicas else 1)):
                self.nodes.append(await self._new_node())
            await self._join()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def owner(self, slot: int) -> int:
        """The node that serves a slot, as the nodes that run say."""
        for place, node in enumerate(self.nodes):
            try:
                async with self.client(place) as client:
                    rows: Any = await ask(client, "CLUSTER", "SLOTS")
            except (RedisError, OSError):
                continue
            for first, last, (_, port, *_), *_ in rows:
                if first <= slot <= last:
                    return next(n for n, node in enumerate(self.nodes) if node.port == port)
        raise BrokerUnavailable(f"no node says who serves slot {slot}")

    async def owner_of(self, partition: int) -> int:
        """The node that serves a partition's slot."""
        return await self.owner(self.slot(partition))

    @staticmethod
    def slot(partition: int) -> int:
        """The slot of a partition's keys."""
        return slot_of(Partition(partition).deadlines)

    async def kill(self, node: int) -> None:
        """SIGKILL, as in a crash."""
        await self.nodes[node].kill()

    async def start(self, node: int) -> None:
        """Bring a node back; as a replica, if another has taken its place meanwhile."""
        await self.nodes[node].start()

    async def failover(self, partition: int) -> int:
        """Hand a partition's slot, and all others of its primary, over to the replica, in order. Gives the new primary.

        :raises BrokerUnavailable: the primary has no replica that runs.
        """
        before = await self.owner_of(partition)
        after = await self._replica_of(before)
        async with self.client(after) as client:
            await ask(client, "CLUSTER", "FAILOVER")
        await self.served_by(self.slot(partition), after)
        return after

    async def migrate(self, slot: int, to: int, between: Callable[[], Awaitable[None]] | None = None) -> None:
        """Move a slot to another primary as an operator's tools do: its keys one after another, then the slot itself.

        :param between: awaited when the first key has gone, and again when all have, before the slot itself goes.
        """
        source = await self.owner(slot)
        ids = {node: await self._id(node) for node in (source, to)}
        async with self.client(source) as old, self.client(to) as new:
            await ask(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            await ask(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
            count = 1 if between is not None else _KEYS_AT_ONCE
            while keys := await ask(old, "CLUSTER", "GETKEYSINSLOT", slot, count):
                await ask(old, "MIGRATE", HOST, self.nodes[to].port, "", 0, 5000, "KEYS", *keys)
                if count == 1 and between is not None:
                    await between()
                    count = _KEYS_AT_ONCE
            if between is not None:
                await between()
            for client in (new, old):
                await ask(client, "CLUSTER", "SETSLOT", slot, "NODE", ids[to])
        await self.served_by(slot, to)

    async def served_by(self, slot: int, node: int) -> None:
        """Wait until every node that runs says that this one serves the slot."""
        port = self.nodes[node].port

        async def agreed() -> bool:
            for place in self._running():
                async with self.client(place) as client:
                    rows: Any = await ask(client, "CLUSTER", "SLOTS")
                if not any(first <= slot <= last and primary[1] == port for first, last, primary, *_ in rows):
                    return False
            return True

        await until(agreed, f"slot {slot} has not gone to node {node}")

    async def whole(self) -> None:
        """Wait until every node that runs says that all slots are served, and every replica follows its primary."""

        async def well() -> bool:
            for place in self._running():
                async with self.client(place) as client:
                    state: Any = await ask(client, "CLUSTER", "INFO")
                    told = state.decode() if isinstance(state, bytes) else str(state)
                    followed: Any = await client.info("replication")
                if "cluster_state:ok" not in told and "'cluster_state': 'ok'" not in told:
                    return False
                if followed["role"] == "slave" and followed["master_link_status"] != "up":
                    return False
            return True

        await until(well, "the nodes are no whole cluster")

    @asynccontextmanager
    async def client(self, node: int) -> AsyncIterator[Redis]:
        """A plain client of one node."""
        async with client_of(self.nodes[node]) as client:
            yield client

    def _running(self) -> list[int]:
        return [place for place, node in enumerate(self.nodes) if node.running]

    async def _new_node(self) -> EmbeddedValkey:
        for last_try in (*[False] * (_TRIES - 1), True):
            bus = free_port()  # not 10,000 above the other, which may be no port at all
            options = {
                "cluster-enabled": "yes",
                "cluster-port": str(bus),
                "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                "cluster-replica-validity-factor": "0",
                "repl-diskless-sync-delay": "0",
            }
            arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
            node = EmbeddedValkey(appendonly=True, extra_args=arguments, binary=self._binary)
            try:
                await node.__aenter__()
                self._buses.append(bus)
                return node
            except BrokerUnavailable:  # somebody else took the port of its bus
                if last_try:
                    raise
        raise AssertionError("unreachable")

    async def _join(self) -> None:
        share = REDIS_CLUSTER_HASH_SLOTS / self._primaries
        for place, node in enumerate(self.nodes):
            async with self.client(place) as client:
                await ask(client, "CLUSTER", "SET-CONFIG-EPOCH", place + 1)
                if place < self._primaries:
                    first, last = round(share * place), round(share * (place + 1)) - 1
                    await ask(client, "CLUSTER", "ADDSLOTSRANGE", first, last)
            async with self.client(0) as first_node:
                if place:
                    await ask(first_node, "CLUSTER", "MEET", HOST, node.port, self._buses[place])
        await until(self._acquainted, "the nodes do not find each other")
        for place in range(self._primaries, len(self.nodes)):
            async with self.client(place) as client:
                await ask(client, "CLUSTER", "REPLICATE", await self._id(place - self._primaries))
        await self.whole()

    async def _acquainted(self) -> bool:
        for place in range(len(self.nodes)):
            async with self.client(place) as client:
                rows: Any = await ask(client, "CLUSTER", "NODES")
            text = rows.decode() if isinstance(rows, bytes) else str(rows)
            if text.count("connected") < len(self.nodes) or "handshake" in text:
                return False
        return True

    async def _id(self, node: int) -> str:
        async with self.client(node) as client:
            answer: Any = await ask(client, "CLUSTER", "MYID")
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    async def _replica_of(self, primary: int) -> int:
        for place in self._running():
            async with self.client(place) as client:
                followed: Any = await client.info("replication")
            if followed["role"] == "slave" and int(followed["master_port"]) == self.nodes[primary].port:
                return place
        raise BrokerUnavailable(f"node {primary} has no replica that runs")

    async def _close(self) -> None:
        for node in self.nodes:
            await node.__aexit__(None, None, None)
