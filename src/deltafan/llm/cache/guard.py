"""A cache that is never in the way: it may be slow, down or broken, and costs a warning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from deltafan.llm.cache.protocol import Cache, CorruptEntry
from deltafan.telemetry.hooks import Hook, Signal, silent

MAX_BYTES: Final = 4 * 1024 * 1024
"""The largest entry. A long answer is some 100 KB; what is larger is most likely not worth its place."""

T = TypeVar("T")


class Guard:
    """Calls a cache within a limit of time. A failure is a signal, then a miss; nothing raises.

    After a failure the cache is left alone for `cooldown` seconds, so that an outage costs one call its `timeout`, and
    not every request. The calls of the beginning, before the first has come back, may take `first_timeout`: a
    connection is made then, and a library loaded.

    Signals: `cache.unavailable` (a warning, once an outage), `cache.corrupt` (a warning), `cache.oversized`.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        timeout: float = 0.5,
        first_timeout: float = 3.0,
        cooldown: float = 5.0,
        max_bytes: int = MAX_BYTES,
        hook: Hook = silent,
    ) -> None:
        self._cache = cache
        self._timeout = timeout
        self._first_timeout = first_timeout
        self._cooldown = cooldown
        self.max_bytes = max_bytes
        self._hook = hook
        self._used = False
        self._down_until = 0.0

    async def get(self, key: str) -> bytes | None:
        """The value; `None` if there is none to be had, for whatever reason, and if it is larger than allowed."""
        value = await self.call(lambda: self._cache.get(key), key)
        if value is not None and len(value) > self.max_bytes:
            self._hook(Signal("cache.oversized", "warning", {"key": key, "bytes": len(value)}))
            return None
        return value

    async def set(self, key: str, value: bytes, ttl: float | None) -> bool:
        """Whether it was stored."""
        if len(value) > self.max_bytes:
            self._hook(Signal("cache.oversized", "info", {"key": key, "bytes": len(value)}))
            return False

        async def store() -> bool:
            await self._cache.set(key, value, ttl=ttl)
            return True

        return bool(await self.call(store, key))

    async def delete(self, key: str) -> bool:
        """Whether the cache has forgotten it for sure."""

        async def forget() -> bool:
            await self._cache.delete(key)
            return True

        return bool(await self.call(forget, key))

    def corrupt(self, key: str, why: str) -> None:
        """Tell that an entry cannot be read."""
        self._hook(Signal("cache.corrupt", "warning", {"key": key, "reason": why}))

    async def call(self, action: Callable[[], Awaitable[T]], key: str) -> T | None:
        """What the action gives; `None` if it fails, or the cache is down."""
        now = asyncio.get_running_loop().time
        if now() < self._down_until:
            return None
        try:
            async with asyncio.timeout(self._timeout if self._used else self._first_timeout):
                return await action()
        except CorruptEntry as error:
            self.corrupt(key, error.message)
        except Exception as error:  # a cache may be anybody's, and fail in any way
            if now() >= self._down_until:  # else another call has told it already
                reason = str(error).partition("\n")[0] or type(error).__name__
                self._hook(Signal("cache.unavailable", "warning", {"reason": reason, "pause": self._cooldown}))
            self._down_until = now() + self._cooldown
        finally:
            self._used = True
        return None
