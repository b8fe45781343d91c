"""Redis Cluster behind redis-py's own client class: each command goes to the node that serves its key.

A node is an ordinary `Redis` client with an ordinary pool, so that what holds for a single Redis (timeouts, no silent
retries, cancellation) holds for each. What a node has certainly not executed (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) is
sent again, to the right node or after a moment, for as long as a command may take; a lost connection is told at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deltafan.broker.address import Node
from deltafan.broker.slots import SlotMap, key_of, slot_of

_PAUSE_MIN, _PAUSE_MAX = 0.01, 0.2
_EVERYWHERE: Final = (("SCRIPT", "LOAD"), ("SCRIPT", "FLUSH"), ("FLUSHALL",), ("FLUSHDB",))
_BROKEN = (RedisConnectionError, RedisTimeoutError, OSError)
Command = tuple[tuple[Any, ...], dict[str, Any]]


class ClusterRedis(Redis):
    """A `Redis` whose commands find their node. Transactions and redis-py's pub/sub are not its business.

    :param slots: shared by all clients of a process.
    :param pool: makes the pool of a node.
    :param patience: seconds that a command may take, redirections and waiting for a failover included.
    """

    def __init__(self, slots: SlotMap, pool: Callable[[Node], ConnectionPool], patience: float) -> None:
        super().__init__(connection_pool=pool(("", 0)))  # never connected: it knows the encoding
        self.slots = slots
        self._pool = pool
        self._patience = patience
        self._clients: dict[Node, Redis] = {}

    def client_of(self, node: Node) -> Redis:
        """The client of one node."""
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = Redis(connection_pool=self._pool(node))
        return client

    async def beside(self, key: str) -> Redis:
        """The client of the node that serves a key now: its clock is the one that the key's scripts go by."""
        return self.client_of(await self.slots.node(slot_of(key)))

    @contextmanager
    def noting(self, node: Node) -> Iterator[None]:
        """Around asking a node: what its failure says of the slot map is kept."""
        try:
            yield
        except MovedError as error:
            self.slots.moved(error.slot_id, error.node_addr)
            raise
        except _BROKEN:
            self.slots.failed(node)
            raise
        self.slots.answered(node)

    async def primaries(self) -> list[Redis]:
        """A client of every node that serves slots."""
        await self.slots.node(None)
        return [self.client_of(node) for node in self.slots.primaries]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if (
            tuple(str(args[0]).upper().split()) in _EVERYWHERE
            or tuple(word.upper() for word in args[:2] if isinstance(word, str)) in _EVERYWHERE
        ):
            answers = [await client.execute_command(*args, **options) for client in await self.primaries()]  # type: ignore[no-untyped-call]
            return answers[0]
        key = key_of(args)
        slot = None if key is None else slot_of(key)
        deadline = asyncio.get_running_loop().time() + self._patience
        pause, hops = _PAUSE_MIN, 0
        asked: Node | None = None
        while True:
            try:
                if asked is not None:
                    return await self._ask(asked, args, options)
                node = await self.slots.node(slot)
                with self.noting(node):
                    return await self.client_of(node).execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except (AskError, ClusterDownError, TryAgainError) as error:
                hops += 1
                only_now = asked is None and isinstance(error, AskError) and not isinstance(error, MovedError)
                asked = error.node_addr if only_now else None  # type: ignore[union-attr]
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                if hops > 1 or not isinstance(error, AskError):  # nodes that do not agree yet send us back and forth
                    await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
                    pause = min(pause * 2, _PAUSE_MAX)

    async def _ask(self, node: Node, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """On the node to which the slot is moving: a key that is not where it was may be there already."""
        pipe = self.client_of(node).pipeline(transaction=False)
        pipe.execute_command("ASKING")
        pipe.execute_command(*args, **options)
        _, answer = await pipe.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> ClusterPipeline:
        return ClusterPipeline(self)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for client in self._clients.values():
            try:
                await client.connection_pool.aclose()
            except (RedisError, OSError):  # closing a broken connection is still closing it
                continue


class ClusterPipeline(Pipeline):
    """Commands sent as one pipeline a node, all nodes at once. A node that is away fails its own commands only."""

    def __init__(self, cluster: ClusterRedis) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction=False, shard_hint=None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers, each in its command's place.

        :param raise_on_error: raise the first error; else each stands in its place, lost connections included.
        """
        commands: list[Command] = [(tuple(args), dict(options)) for args, options in self.command_stack]
        self.command_stack = []
        answers: list[Any] = [None] * len(commands)
        places = list(range(len(commands)))
        for _ in range(2):  # once more for what has moved
            await self._round(commands, answers, places)
            places = [place for place in places if isinstance(answers[place], MovedError)]
            for place in places:
                self._cluster.slots.moved(answers[place].slot_id, answers[place].node_addr)
            if not places:
                break
        for place, answer in enumerate(answers):
            if isinstance(answer, AskError):
                args, options = commands[place]
                try:
                    answers[place] = await self._cluster.execute_command(*args, **options)
                except (RedisError, OSError) as error:
                    answers[place] = error
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    async def _round(self, commands: Sequence[Command], answers: list[Any], places: Sequence[int]) -> None:
        by_node: dict[Node, list[int]] = {}
        for place in places:
            key = key_of(commands[place][0])
            try:
                node = await self._cluster.slots.node(None if key is None else slot_of(key))
            except (RedisError, OSError) as error:
                answers[place] = error
                continue
            by_node.setdefault(node, []).append(place)
        await asyncio.gather(*(self._send(node, commands, answers, share) for node, share in by_node.items()))

    async def _send(self, node: Node, commands: Sequence[Command], answers: list[Any], share: Sequence[int]) -> None:
        pipe = self._cluster.client_of(node).pipeline(transaction=False)
        for place in share:
            args, options = commands[place]
            pipe.execute_command(*args, **options)
        try:
            with self._cluster.noting(node):
                found = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            found = [error] * len(share)
        for place, answer in zip(share, found, strict=True):
            answers[place] = answer


async def beside(redis: Redis, key: str) -> Redis:
    """The client of the server that has a key. A single Redis is that of every key."""
    return await redis.beside(key) if isinstance(redis, ClusterRedis) else redis
