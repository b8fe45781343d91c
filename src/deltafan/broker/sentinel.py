"""Redis behind Sentinel: each new connection asks the sentinels where the primary is, and checks that it is one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError, ResponseError

from deltafan.broker.address import Node
from deltafan.broker.line import Channel, Line, close

Replaced = Callable[[], Awaitable[None]]

_SLOWEST: Final = 1.0
"""Seconds that a sentinel may take to answer: one that is away must not use up a command's whole time."""

_SWITCHED: Final = b"+switch-master"


class Sentinels:
    """Who the primary is, by the word of the sentinels.

    All are asked at once, and the answer with the highest epoch of the configuration counts: a sentinel that was cut
    off may still name the primary of before. Nor does anybody go back to an epoch before one that was heard of: right
    after a failover most sentinels have not been told of it, and the old primary takes writes still. From the first
    question on each is listened to as well: a primary that was replaced in order may take writes for seconds before
    it is told, and all of them are lost.

    :param timeout: seconds that they may take.
    :param probe_interval: seconds of silence after which the connection to one is probed, and all are asked again.
    """

    def __init__(
        self, nodes: Sequence[Node], service: str, options: Mapping[str, Any], *, timeout: float, probe_interval: float
    ) -> None:
        self._service = service
        self._nodes = tuple(nodes)
        self._options = dict(options)
        self._timeout = min(timeout, _SLOWEST)
        self._probe_interval = probe_interval
        self._told: list[Replaced] = []
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.master: Node | None = None
        """As it was found last."""
        self._epoch = -1
        """Of the configuration in which it was."""

    def tell(self, replaced: Replaced) -> None:
        """Have this called when another server has become the primary: connections to the old one must go."""
        self._told.append(replaced)

    def tell_no_more(self, replaced: Replaced) -> None:
        self._told.remove(replaced)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self) -> None:
        for node in self._nodes:
            line = Line(partial(self._connection, node), self._probe_interval)
            line.channels[_SWITCHED] = Channel(_SWITCHED, lambda _: self._news.set(), self._news.set)
            self._tasks.append(asyncio.create_task(line.run(), name=f"deltafan-sentinel-{node[0]}:{node[1]}"))
        self._tasks.append(asyncio.create_task(self._ask_again(), name="deltafan-sentinels"))

    async def _ask_again(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._probe_interval):
                    await self._news.wait()
            self._news.clear()
            with suppress(RedisError, OSError):  # then nobody knows better
                await self.find()

    async def find(self) -> Node:
        """The primary, as the sentinels say now.

        :raises redis.asyncio.sentinel.MasterNotFoundError: no sentinel knows it.
        """
        if not self._tasks:
            self._listen()
        asking = {asyncio.create_task(self._ask(node)) for node in self._nodes}
        pending = set(asking)
        answers: list[tuple[int, Node]] = []
        problems: list[str] = []
        known = self._epoch
        try:
            while pending and (len(answers) <= len(self._nodes) // 2 or max(answers)[0] < self._epoch):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers.append(task.result())
                    except (RedisError, OSError) as error:
                        problems.append(str(error) or type(error).__name__)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not answers:
            told = "; ".join(dict.fromkeys(problems))
            raise MasterNotFoundError(f"no sentinel knows the primary {self._service!r}: {told}")
        epoch, master = max(answers)
        # Sentinels that were set up anew count from the beginning: then all say so.
        anew = len(answers) == len(self._nodes) and known == self._epoch
        if epoch < self._epoch and self.master is not None and not anew:
            return self.master
        self._epoch = epoch
        before, self.master = self.master, master
        if before not in (None, master):
            for replaced in tuple(self._told):
                await replaced()
        return master

    def _connection(self, node: Node) -> Connection:
        pool = ConnectionPool(
            host=node[0],
            port=node[1],
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            **self._options,
        )
        connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def _ask(self, node: Node) -> tuple[int, Node]:
        """The epoch of a sentinel's configuration, and the primary in it."""
        connection = self._connection(node)
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("SENTINEL", "MASTER", self._service)
                raw: Any = await connection.read_response()
        finally:
            await close(connection)
        texts = [part.decode() for part in raw]
        said = dict(zip(texts[::2], texts[1::2], strict=True))
        return int(said["config-epoch"]), (said["ip"], int(said["port"]))


class ManagedConnection:
    """Mixed into redis-py's connections: it goes to the primary of the moment, and no more to one that was demoted."""

    sentinels: Sentinels
    host: str
    port: int

    async def _connect(self) -> None:
        self.host, self.port = await self.sentinels.find()
        await super()._connect()  # type: ignore[misc]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        # The sentinels may still name a primary that has just come back as a replica, or not know that it fell.
        await self.send_command("ROLE", check_health=False)  # type: ignore[attr-defined]
        try:
            role = await self.read_response()
        except NoPermissionError:
            return  # the first write will tell
        if role[0] not in (b"master", "master"):
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError(f"{self.host}:{self.port} is not the primary")

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if isinstance(error, ReadOnlyError) or any(word in str(error) for word in ("READONLY", "UNBLOCKED")):
                await self.disconnect(nowait=True)  # type: ignore[attr-defined]
                raise RedisConnectionError("the primary is a replica now") from error
            raise


def managed(connection_class: type[Connection], sentinels: Sentinels) -> type[Connection]:
    """A connection class of the sentinels' primary."""
    made: Any = type(connection_class.__name__, (ManagedConnection, connection_class), {"sentinels": sentinels})
    return made  # type: ignore[no-any-return]
