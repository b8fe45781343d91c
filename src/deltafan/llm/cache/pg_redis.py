"""Entries kept in PostgreSQL, and those in use in Redis, too."""

from __future__ import annotations

from typing import Final

from deltafan.llm.cache.guard import MAX_BYTES, Guard
from deltafan.llm.cache.postgres import PostgresCache
from deltafan.llm.cache.redis import RedisCache
from deltafan.telemetry.hooks import Hook, silent

HOT_TTL: Final = 3600.0
_HOT_TIMEOUT: Final = 0.1  # seconds: PostgreSQL answers in less than it is worth waiting for Redis


class PgRedisCache:
    """Implements `Cache`: PostgreSQL holds every entry, Redis for `hot_ttl` seconds those that were written or read.

    Redis may be down: then PostgreSQL alone serves, and a signal says so. What is read from PostgreSQL never replaces
    what is hot; so after a write readers get the new entry. After a delete by another process, one that was reading at
    that moment may keep the entry hot for `hot_ttl` seconds more.
    """

    def __init__(
        self,
        durable: PostgresCache,
        hot: RedisCache,
        *,
        hot_ttl: float = HOT_TTL,
        max_bytes: int = MAX_BYTES,
        hook: Hook = silent,
    ) -> None:
        self._durable = durable
        self._hot = hot
        self._guard = Guard(hot, timeout=_HOT_TIMEOUT, first_timeout=_HOT_TIMEOUT * 5, max_bytes=max_bytes, hook=hook)
        self._hot_ttl = hot_ttl

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        hot = await self._guard.get(key)
        if hot is not None:
            return hot
        row = await self._durable.read(key)
        if row is None:
            return None
        await self._guard.call(lambda: self._hot.add(key, row.value, ttl=self._lifetime(row.ttl)), key)
        return row.value

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        await self._durable.set(key, value, ttl=ttl)
        if not await self._guard.set(key, value, self._lifetime(ttl)):
            await self._guard.delete(key)  # too large to be hot; then what is hot is an older one

    async def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        await self._durable.delete(key)
        await self._guard.delete(key)

    async def aclose(self) -> None:
        """See `Cache.aclose`."""
        try:
            await self._durable.aclose()
        finally:
            await self._hot.aclose()

    def _lifetime(self, ttl: float | None) -> float:
        return self._hot_ttl if ttl is None else min(ttl, self._hot_ttl)
