"""An embedded Redis behind Sentinel: a primary, a replica and three sentinels, which do not outlive this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from deltafan.devserver.agreement import ask, client_of, until
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.devserver.watched import HOST, PID_FILE
from deltafan.errors import BrokerUnavailable

SERVICE: Final = "mymaster"
"""The name that the sentinels have for the primary."""
DOWN_AFTER_MS: Final = 500
"""Milliseconds after which a silent primary counts as lost."""
_UNHURRIED_MS: Final = 60_000
_FAILOVER_MS: Final = 2000
_QUORUM: Final = 2


class EmbeddedSentinel:
    """From entering `async with` to leaving it. Data nodes are named by their place in `nodes`.

    Every data node keeps an append-only file, so that what it was told survives `kill_primary` and `start`.

    :param binary: a Valkey or Redis server; None is the one that the `embedded` extra brings.
    """

    def __init__(self, *, binary: Path | None = None) -> None:
        self.nodes: list[EmbeddedValkey] = []
        self.sentinels: list[EmbeddedValkey] = []
        self._binary = binary

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in self.sentinels)}/{SERVICE}"

    async def __aenter__(self) -> EmbeddedSentinel:
        try:
            primary = await self._node()
            await self._node("--replicaof", f"{HOST} {primary.port}")
            for _ in range(3):
                sentinel = _Sentinel(primary.port, binary=self._binary)
                await sentinel.__aenter__()
                self.sentinels.append(sentinel)
                async with client_of(sentinel) as client:  # how often it looks at the nodes: by default every 10 s
                    await ask(client, "SENTINEL", "DEBUG", "INFO-PERIOD", str(DOWN_AFTER_MS))
            await self.whole()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def primary(self) -> int:
        """The primary's node, as most sentinels say."""
        said: list[int] = []
        for sentinel in self.sentinels:
            try:
                async with client_of(sentinel) as client:
                    _, port = await ask(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            except (RedisError, OSError):
                continue
            said.append(next(place for place, node in enumerate(self.nodes) if node.port == int(port)))
        if not said:
            raise BrokerUnavailable("no sentinel says who the primary is")
        return max(said, key=said.count)

    async def kill_primary(self) -> int:
        """SIGKILL, as in a crash. Gives which node it was; the other takes its place soon."""
        place = await self.primary()
        await self.nodes[place].kill()
        return place

    async def start(self, node: int) -> None:
        """Bring a node back; as a replica, if the other has taken its place meanwhile."""
        await self.nodes[node].start()

    async def failover(self) -> int:
        """Have the sentinels hand over to the replica, in order. Gives the new primary.

        :raises BrokerUnavailable: they do not.
        """
        before = await self.primary()

        async def begun() -> bool:
            async with client_of(self.sentinels[0]) as client:
                try:
                    await ask(client, "SENTINEL", "FAILOVER", SERVICE)
                except ResponseError as error:  # they are at it already, or rest after the last one
                    return "INPROG" in str(error) and await self.primary() != before
            return True

        await until(begun, "the sentinels do not begin a failover")
        return await self.replaced(before)

    @asynccontextmanager
    async def unhurried(self) -> AsyncIterator[None]:
        """Have the sentinels take nobody for lost meanwhile. On a busy machine a new primary may be silent for so long
        that they go back to the old one, which has not even followed it yet.
        """
        await self._down_after(_UNHURRIED_MS)
        try:
            yield
        finally:
            await self._down_after(DOWN_AFTER_MS)

    async def _down_after(self, milliseconds: int) -> None:
        for sentinel in self.sentinels:
            async with client_of(sentinel) as client:
                await ask(client, "SENTINEL", "SET", SERVICE, "down-after-milliseconds", milliseconds)

    async def replaced(self, before: int) -> int:
        """Wait until another node than that is the primary. Gives it."""
        after = 1 - before

        async def done() -> bool:
            async with self.client(after) as client:
                role: Any = await ask(client, "ROLE")
            return await self.primary() == after and role[0] == b"master"

        await until(done, f"node {after} does not become the primary")
        return after

    async def whole(self) -> None:
        """Wait until there is a primary with a replica that follows it, and each sentinel knows the others and both."""

        async def well() -> bool:
            place = await self.primary()
            async with self.client(place) as client:
                told: Any = await client.info("replication")
            if told["role"] != "master" or told.get("slave0", {}).get("state") != "online":
                return False
            for sentinel in self.sentinels:
                async with client_of(sentinel) as client:
                    said = _pairs(await ask(client, "SENTINEL", "MASTER", SERVICE))
                known = (said["flags"], said["num-slaves"], said["num-other-sentinels"])
                if known != ("master", "1", str(len(self.sentinels) - 1)):
                    return False
            return True

        await until(well, "the nodes are no whole")

    @asynccontextmanager
    async def client(self, node: int) -> AsyncIterator[Redis]:
        """A plain client of one data node."""
        async with client_of(self.nodes[node]) as client:
            yield client

    async def _node(self, *arguments: str) -> EmbeddedValkey:
        extra = ("--repl-diskless-sync-delay", "0", *arguments)
        node = EmbeddedValkey(appendonly=True, extra_args=extra, binary=self._binary)
        await node.__aenter__()
        self.nodes.append(node)
        return node

    async def _close(self) -> None:
        for server in (*self.sentinels, *self.nodes):
            await server.__aexit__(None, None, None)


class _Sentinel(EmbeddedValkey):
    """A sentinel: the same program, which keeps what it knows in its configuration file."""

    def __init__(self, primary_port: int, *, binary: Path | None) -> None:
        super().__init__(binary=binary)
        self._primary_port = primary_port

    def _command(self, binary: Path, directory: Path, port: int) -> list[str]:
        file = directory / f"sentinel-{port}.conf"
        if not file.exists():
            file.write_text("\n".join(self._lines(directory, port)))
        return [str(binary), str(file), "--sentinel"]

    def _lines(self, directory: Path, port: int) -> Sequence[str]:
        return (
            f"port {port}",
            f"bind {HOST}",
            f"dir {directory}",
            f"pidfile {directory / PID_FILE}",
            "daemonize no",
            f"sentinel monitor {SERVICE} {HOST} {self._primary_port} {_QUORUM}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {_FAILOVER_MS}",
            f"sentinel parallel-syncs {SERVICE} 1",
            "",
        )


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = [part.decode() for part in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
