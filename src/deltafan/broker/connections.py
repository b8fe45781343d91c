"""Clients of Redis, separate by use, and the one place where its errors become ours.

redis-py retries ten times by default and times sockets out after 5 s. Here nothing is retried silently (scripts are
idempotent, and their callers decide), and blocking reads have a client of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deltafan.broker.address import Address, Node, parse_address, unusable
from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.line import close
from deltafan.broker.misdirected import mistake, plain, telling
from deltafan.broker.sentinel import Sentinels, managed
from deltafan.broker.slots import SlotMap
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.settings import RedisSettings

BLOCK = 5.0
"""Seconds that one blocking read waits for work at the most."""
COMMAND_CONNECTIONS = 32
"""Connections for short commands of one process. More callers than that wait for one."""
_CLUSTER_CONNECTIONS = 2048
"""Of one node for appends or blocking reads: a partition needs one of each, and there are 1,024 at the most."""
_REFUSALS = ("MISCONF", "MASTERDOWN", "NOREPLICAS", "OOM", "LOADING", "READONLY", "UNBLOCKED")
_PASSING = (OutOfMemoryError, ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError, AskError)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translate what redis-py raises.

    :raises BrokerUnavailable: Redis cannot be reached, or refuses for now (loading, out of memory, read-only, …).
    :raises ConfigurationError: Redis wants other credentials, an ACL forbids a command, or the URL leads to a server of
        another kind or to no database.
    """
    try:
        yield
    except (AuthenticationError, NoPermissionError) as error:
        raise ConfigurationError(f"Redis refused us: {plain(error)}") from error
    except _PASSING as error:
        raise BrokerUnavailable(f"Redis does not take writes now: {plain(error)}") from error
    except InvalidResponse as error:
        raise ConfigurationError("REDIS_URL: what answers there does not speak Redis's protocol") from error
    except MaxConnectionsError as error:
        raise BrokerUnavailable("every connection to Redis is busy") from error
    except (TimeoutError, RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise BrokerUnavailable(f"Redis cannot be reached: {str(error) or type(error).__name__}") from error
    except ResponseError as error:
        if str(error).startswith("NOPERM") or "NOPERM" in str(error) or "ACL failure" in str(error):
            raise ConfigurationError(f"Redis refused us: {plain(error)}") from error
        if any(word in str(error) for word in _REFUSALS):
            raise BrokerUnavailable(f"Redis does not take writes now: {plain(error)}") from error
        rule = mistake(error)
        if rule is not None:
            raise ConfigurationError(f"REDIS_URL: {rule}") from error
        raise


def is_transient(error: BaseException) -> bool:
    """Whether waiting and trying again can help with an error that Redis gave."""
    if isinstance(error, BrokerUnavailable | RedisConnectionError | RedisTimeoutError | OSError):
        return True
    if isinstance(error, (*_PASSING, MaxConnectionsError)):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _REFUSALS)


_CLOSED = "the handler is closed"
"""In uvloop's error when a transport has been closed."""


class _HeedsCancellation:
    """Mixed into redis-py's connections, which send inside `asyncio.wait_for`. Before Python 3.12 that swallows a
    cancellation that comes as the bytes have just gone: a task that was told to end would live on.

    They also know nothing of the error with which uvloop meets who writes to a connection that was reset just now.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            if _CLOSED not in str(error):
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise RedisConnectionError("the connection was closed just now") from error
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # nobody will read the answer
            raise asyncio.CancelledError


def _heeding(plain: type[Connection], *, single: bool) -> type[Connection]:
    made: Any = type(plain.__name__, (_HeedsCancellation, *telling(plain, single=single), plain), {})
    return made  # type: ignore[no-any-return]


class Connections:
    """The process's connections to Redis: `commands`, `appends`, `blocking`, and subscriptions.

    A single Redis, the primary behind sentinels, or a cluster, as the URL says. Nothing is connected before its first
    use.

    :raises ConfigurationError: the URL is not usable.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        address = parse_address(settings.url)
        timeout = settings.command_timeout
        self._options: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout,
        }
        if "path" not in address.options:
            self._options["socket_keepalive"] = True
        self._options |= {name: value for name, value in address.options.items() if name != "connection_class"}
        given = address.options.get("connection_class", Connection)
        self._class = _heeding(given, single=address.topology != "cluster")
        self.sentinels: Sentinels | None = None
        """Who say where the primary is, when Redis is behind Sentinel."""
        self.slots: SlotMap | None = None
        """Which node serves what, when Redis is a cluster."""
        self._pools: list[ConnectionPool] = []
        try:
            if address.topology == "cluster":
                self._cluster(address)
            else:
                self._one_server(address)
            self._pool(blocking=True).make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError) as error:
            raise unusable(settings.url, error) from None

    def _one_server(self, address: Address) -> None:
        if address.topology == "sentinel":
            self.sentinels = Sentinels(
                address.nodes,
                address.service,
                address.sentinel_options,
                timeout=self.settings.command_timeout,
                probe_interval=self.settings.probe_interval,
            )
            self._class = managed(self._class, self.sentinels)
        self.commands: Redis = Redis(connection_pool=self._owned(self._waiting_pool()))
        self.appends: Redis = Redis(connection_pool=self._owned(self._pool()))
        self._reads = self._owned(self._pool(blocking=True))
        self.blocking: Redis = Redis(connection_pool=self._reads)

    def _cluster(self, address: Address) -> None:
        patience = self.settings.command_timeout
        self.slots = slots = SlotMap(address.nodes, self._read_slots)
        self.commands = ClusterRedis(slots, self._waiting_pool, patience)
        self.appends = ClusterRedis(slots, self._pool, patience)
        self.blocking = ClusterRedis(slots, partial(self._pool, blocking=True), patience)

    def _waiting_pool(self, node: Node | None = None) -> ConnectionPool:
        """For short commands. A caller waits for a free connection as long as for an answer."""
        timeout = self.settings.command_timeout
        return BlockingConnectionPool(
            connection_class=self._class,
            max_connections=COMMAND_CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            **self._at(node),
        )

    def _pool(self, node: Node | None = None, *, blocking: bool = False) -> ConnectionPool:
        """:param blocking: for reads that wait for work."""
        return ConnectionPool(
            connection_class=self._class,
            max_connections=_CLUSTER_CONNECTIONS if self.slots is not None else None,
            socket_timeout=self.settings.command_timeout + (BLOCK if blocking else 0),
            **self._at(node),
        )

    def _at(self, node: Node | None) -> dict[str, Any]:
        return self._options | ({"host": node[0], "port": node[1]} if node is not None else {})

    def _owned(self, pool: ConnectionPool) -> ConnectionPool:
        self._pools.append(pool)
        if self.sentinels is not None:
            self.sentinels.tell(pool.disconnect)
        return pool

    async def _read_slots(self, node: Node) -> Any:
        connection: Connection = self._pool(node).make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("CLUSTER", "SLOTS")
            return await connection.read_response()
        finally:
            await close(connection)

    def subscription(self, node: Node | None = None) -> Connection:
        """A new connection for a subscriber, not yet connected and in no pool.

        :param node: of a cluster, where it goes.
        """
        pool = self._reads if self.slots is None else self._pool(node or ("", 0), blocking=True)
        connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def aclose(self) -> None:
        if self.sentinels is not None:
            await self.sentinels.aclose()
        if self.slots is not None:
            await self.slots.aclose()
            for client in (self.commands, self.appends, self.blocking):
                await client.aclose()
        for pool in self._pools:
            try:
                await pool.aclose()
            except (RedisError, OSError):  # closing a broken connection is still closing it
                continue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
