"""Clients of Redis, separate by use, and the one place where its errors become ours.

redis-py retries ten times by default and times sockets out after 5 s. Here nothing is retried silently (scripts are
idempotent, and their callers decide), and blocking reads have a client of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.settings import RedisSettings

BLOCK = 5.0
"""Seconds that one blocking read waits for work at the most."""
COMMAND_CONNECTIONS = 32
"""Connections for short commands of one process. More callers than that wait for one."""
_OPTIONS = ("db", "username", "password", "client_name")
_REFUSALS = ("MISCONF", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN", "OOM", "LOADING", "READONLY")


def redacted(url: str) -> str:
    """The URL without password and options, for messages. It may be malformed: a password can hold / ? # @ unquoted."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "(not a URL)"
    who, at, where = rest.rpartition("@")
    user = who.partition(":")[0] if ":" in who else ""
    return f"{scheme}://{user}:***@{where.partition('?')[0]}" if at else f"{scheme}://{where.partition('?')[0]}"


def _check_options(url: str) -> None:
    """:raises ValueError: redis-py would let an option of the URL win over ours, or fail on it at its first command."""
    for name in parse_qs(urlsplit(url).query, keep_blank_values=True):
        if name not in _OPTIONS and not name.startswith("ssl_"):
            raise ValueError(f"option {name!r} is not one of {', '.join(_OPTIONS)}, ssl_…")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translate what redis-py raises.

    :raises BrokerUnavailable: Redis cannot be reached, or refuses for now (loading, out of memory, read-only, …).
    :raises ConfigurationError: Redis wants other credentials, or an ACL forbids a command.
    """
    try:
        yield
    except (AuthenticationError, NoPermissionError) as error:
        raise ConfigurationError(f"Redis refused us: {error}") from error
    except (OutOfMemoryError, ReadOnlyError, BusyLoadingError) as error:
        raise BrokerUnavailable(f"Redis does not take writes now: {error}") from error
    except InvalidResponse as error:
        raise ConfigurationError("REDIS_URL: what answers there does not speak Redis's protocol") from error
    except MaxConnectionsError as error:
        raise BrokerUnavailable("every connection to Redis is busy") from error
    except (TimeoutError, RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise BrokerUnavailable(f"Redis cannot be reached: {str(error) or type(error).__name__}") from error
    except ResponseError as error:
        if str(error).startswith("NOPERM") or "NOPERM" in str(error) or "ACL failure" in str(error):
            raise ConfigurationError(f"Redis refused us: {error}") from error
        if any(word in str(error) for word in _REFUSALS):
            raise BrokerUnavailable(f"Redis does not take writes now: {error}") from error
        raise


def is_transient(error: BaseException) -> bool:
    """Whether waiting and trying again can help with an error that Redis gave."""
    if isinstance(error, BrokerUnavailable | RedisConnectionError | RedisTimeoutError | OSError):
        return True
    if isinstance(error, OutOfMemoryError | ReadOnlyError | BusyLoadingError | MaxConnectionsError):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _REFUSALS)


class _HeedsCancellation:
    """Mixed into redis-py's connections, which send inside `asyncio.wait_for`. Before Python 3.12 that swallows a
    cancellation that comes as the bytes have just gone: a task that was told to end would live on.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # nobody will read the answer
            raise asyncio.CancelledError


def _heeding(pool: ConnectionPool) -> None:
    plain: Any = pool.connection_class
    pool.connection_class = type(plain.__name__, (_HeedsCancellation, plain), {})


class Connections:
    """The process's connections to Redis: `commands`, `appends`, `blocking`, and subscriptions."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        common: dict[str, Any] = {
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": settings.command_timeout,
        }
        if not settings.url.startswith("unix:"):
            common["socket_keepalive"] = True
        timeout = settings.command_timeout
        try:
            _check_options(settings.url)
            # A caller waits for a free connection as long as for an answer.
            self._commands = BlockingConnectionPool.from_url(
                settings.url, max_connections=COMMAND_CONNECTIONS, timeout=timeout, socket_timeout=timeout, **common
            )
            self._appends = ConnectionPool.from_url(settings.url, socket_timeout=timeout, **common)
            self._blocking = ConnectionPool.from_url(settings.url, socket_timeout=timeout + BLOCK, **common)
            self._blocking.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError) as error:
            # What Python takes for the port may be a part of the password.
            rule = "a / ? # or @ in a password is written %2F %3F %23 %40" if "Port could" in str(error) else str(error)
            raise ConfigurationError(f"REDIS_URL {redacted(settings.url)!r} is not usable: {rule}") from None
        for pool in (self._commands, self._appends, self._blocking):
            _heeding(pool)
        self.commands: Redis = Redis(connection_pool=self._commands)
        self.appends: Redis = Redis(connection_pool=self._appends)
        self.blocking: Redis = Redis(connection_pool=self._blocking)

    def subscription(self) -> Connection:
        """A new connection for a subscriber, not yet connected and in no pool."""
        connection: Connection = self._blocking.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def aclose(self) -> None:
        for pool in (self._commands, self._appends, self._blocking):
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
