"""Asking several servers, and waiting for them to agree on something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.devserver.watched import HOST
from deltafan.errors import BrokerUnavailable

AGREE_SECONDS: Final = 30.0
"""How long they may take: for who is the primary now, say."""
_LOOK_AGAIN: Final = 0.02
_ANSWER_SECONDS: Final = 5.0


@asynccontextmanager
async def client_of(server: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A plain client, which tries nothing twice: a server may just have been killed."""
    once = Retry(NoBackoff(), 0)
    async with Redis(host=HOST, port=server.port, protocol=2, socket_timeout=_ANSWER_SECONDS, retry=once) as client:
        yield client


async def ask(client: Redis, *words: str | int | bytes) -> Any:
    """A command, and its answer as the server gives it."""
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def until(check: Callable[[], Awaitable[bool]], problem: str) -> None:
    """Ask again and again. A server that is just starting, or has just gone, says no.

    :param problem: what to tell when they never agree.
    :raises BrokerUnavailable: they have not in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + AGREE_SECONDS
    while not await _holds(check):
        if loop.time() > deadline:
            raise BrokerUnavailable(problem)
        await asyncio.sleep(_LOOK_AGAIN)


async def _holds(check: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await check()
    except (RedisError, OSError):
        return False
