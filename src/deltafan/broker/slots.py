"""Which node of a cluster serves which hash slot, and where in a command its key stands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import ClusterDownError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from deltafan.broker.address import Node

_QUIET: Final = 0.2
"""Seconds between two looks at a map that is known to be old: with a node away every command would ask for one."""
_KEYLESS: Final = frozenset(("PING", "TIME", "INFO", "CONFIG", "CLIENT", "CLUSTER", "SCRIPT", "COMMAND", "ACL", "ROLE"))
_NOT_KEYS: Final = frozenset(("PUBLISH", "DBSIZE", "FLUSHALL", "FLUSHDB", "WAIT"))
_CONTAINERS: Final = frozenset(("XGROUP", "XINFO", "OBJECT", "MEMORY"))
_SCRIPTS: Final = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"))
ReadSlots = Callable[[Node], Awaitable[Any]]


def slot_of(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)


def key_of(args: Sequence[Any]) -> str | bytes | None:
    """The first key of a command, which decides where it runs; `None` where any node will do."""
    words = [*str(args[0]).upper().split(), *args[1:]]
    name = words[0]
    place = 1
    if name in _KEYLESS or name in _NOT_KEYS:
        return None
    if name == "PUBSUB":
        if str(words[1]).upper() != "SHARDNUMSUB":
            return None
        place = 2
    elif name in _CONTAINERS:
        place = 2
    elif name in _SCRIPTS:
        if int(words[2]) == 0:
            return None
        place = 3
    elif name in ("XREAD", "XREADGROUP"):
        texts = [word.upper() if isinstance(word, str | bytes) else word for word in words]
        place = 1 + (texts.index("STREAMS") if "STREAMS" in texts else texts.index(b"STREAMS"))
    key: str | bytes | None = words[place] if len(words) > place else None
    return key


class SlotMap:
    """The map from slots to primaries, read from any node that answers.

    A redirection corrects one slot; a connection that fails says that the map may be old, and the next use reads it
    anew.

    :param seeds: the nodes of the URL, asked when no other answers.
    :param read: asks one node for `CLUSTER SLOTS`.
    """

    def __init__(self, seeds: Sequence[Node], read: ReadSlots) -> None:
        self._seeds = tuple(seeds)
        self._read = read
        self._slots: dict[int, Node] = {}
        self._stale = True
        self._read_at = float("-inf")
        self._suspects: set[Node] = set()  # those that failed since the last look: asked last
        self._reading: asyncio.Task[None] | None = None

    @property
    def primaries(self) -> list[Node]:
        """The nodes that serve slots, as far as they are known."""
        return sorted(set(self._slots.values()))

    def known(self, slot: int) -> Node | None:
        return self._slots.get(slot)

    async def node(self, slot: int | None) -> Node:
        """The primary of a slot; of `None` any one.

        :raises redis.exceptions.ConnectionError: no node of the cluster can be asked.
        :raises redis.exceptions.ClusterDownError: nobody serves the slot.
        """
        if self._stale and asyncio.get_running_loop().time() - self._read_at >= _QUIET:
            await self.refresh()
        if slot is None:
            able = [node for node in self.primaries if node not in self._suspects] or self.primaries
            if not able:
                raise ClusterDownError("CLUSTERDOWN no node serves a hash slot")
            return random.choice(able)  # noqa: S311 - which one is no secret
        node = self._slots.get(slot)
        if node is None:
            self._stale = True
            raise ClusterDownError(f"CLUSTERDOWN Hash slot {slot} is not served")
        return node

    def moved(self, slot: int, node: Node) -> None:
        """A node has said who serves a slot now."""
        self._slots[slot] = node

    def failed(self, node: Node) -> None:
        """A connection to the node broke or could not be made."""
        self._suspects.add(node)
        self._stale = True

    def answered(self, node: Node) -> None:
        """The node is there."""
        self._suspects.discard(node)

    async def refresh(self) -> None:
        """Read the map anew. Who asks while it is being read waits for that reading.

        :raises redis.exceptions.ConnectionError: no node answers.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._refresh(), name="deltafan-slots")
            self._reading.add_done_callback(_looked_at)
        await asyncio.shield(self._reading)

    async def aclose(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _refresh(self) -> None:
        problem: Exception | None = None
        for node in self._in_turn():
            try:
                rows = await self._read(node)
                self._slots = dict(_places(rows, node))
            except (RedisError, OSError) as error:
                self._suspects.add(node)
                problem = problem or error
                continue
            self._stale = bool(self._suspects)  # until it shows what has become of those that failed
            self._suspects &= set(self._slots.values())
            self._read_at = asyncio.get_running_loop().time()
            return
        self._read_at = asyncio.get_running_loop().time()
        if isinstance(problem, RedisError):
            raise problem
        raise RedisConnectionError(f"no node of the cluster answers: {problem}")

    def _in_turn(self) -> list[Node]:
        nodes = self.primaries
        random.shuffle(nodes)
        nodes += [seed for seed in self._seeds if seed not in nodes]
        return sorted(nodes, key=lambda node: node in self._suspects)


def _places(rows: Any, asked: Node) -> Iterable[tuple[int, Node]]:
    """CLUSTER SLOTS: [first, last, [host, port, id, …], replicas …] a range. An unknown host is that of who answers."""
    for first, last, primary, *_ in rows:
        host, port = primary[0], int(primary[1])
        name = host.decode() if isinstance(host, bytes) else host
        node = (asked[0] if name in (None, "", "?") else name, port)
        for slot in range(int(first), int(last) + 1):
            yield slot, node


def _looked_at(task: asyncio.Task[None]) -> None:
    """Those who waited may all have been cancelled; an error that nobody reads must not be reported as forgotten."""
    if not task.cancelled():
        task.exception()
