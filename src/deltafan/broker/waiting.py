"""Waiting for several nodes of a cluster at once, none of whose answers may get lost.

A blocking read that is given up may already have its answer: an entry that nobody else gets, and that nobody has seen.
So the reads that are no longer needed are not cancelled; their node is told to answer them now (CLIENT UNBLOCK).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.slots import slot_of

T = TypeVar("T")
LOOK_AGAIN: Final = 0.5
"""Seconds that the others wait when one has failed: it may be there again."""
_ENDING: Final = 1.0
"""Seconds that a node may take to end its read. Of one that is away what it gave is found later, as unacknowledged."""


@dataclass(slots=True)
class Read(Generic[T]):
    """A blocking read. `run` is given a client of one connection, on the node that serves the key."""

    key: str
    run: Callable[[Redis], Awaitable[T]]
    node: Redis | None = field(default=None)
    client: int = field(default=0)
    """The connection, as its node names it; 0 while it does not block."""


async def read_first(cluster: ClusterRedis, reads: Sequence[Read[T]]) -> list[Callable[[], T]]:
    """Run all until one has brought something; then have the others end, and wait for what they bring.

    :return: in the reads' order, what gives a read's result, or raises its error.
    """
    tasks = [asyncio.create_task(_read(cluster, read)) for read in reads]
    try:
        pending, patience = set(tasks), None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done or any(task.exception() is None and task.result() for task in done):
                break
            if any(task.exception() is not None for task in done):
                patience = LOOK_AGAIN
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDING):
                while pending:
                    await asyncio.gather(*(_unblock(read) for read in reads))
                    _, pending = await asyncio.wait(pending, timeout=0.05)  # one may have begun to block only now
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [partial(_result, task) for task in tasks]


def _result(task: asyncio.Task[T]) -> T:
    if task.cancelled():
        raise RedisConnectionError("a node does not answer")
    return task.result()


async def _read(cluster: ClusterRedis, read: Read[T]) -> T:
    node = await cluster.slots.node(slot_of(read.key))
    with cluster.noting(node):
        read.node = cluster.client_of(node)
        alone = read.node.client()
        try:  # not `async with`: cancelled as it is entered, it would keep its connection
            read.client = await alone.client_id()
            return await read.run(alone)
        finally:
            read.client = 0
            await alone.aclose()


async def _unblock(read: Read[T]) -> None:
    if read.client and read.node is not None:
        try:
            await read.node.client_unblock(read.client)
        except (RedisError, OSError):
            return  # then the read meets the same failure, or its own end
