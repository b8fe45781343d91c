"""A cache in Redis or Valkey."""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from deltafan.errors import ConfigurationError
from deltafan.llm.cache.opening import translated
from deltafan.llm.cache.protocol import check_key

KEEP: Final = 7 * 86_400.0
"""Seconds. The Redis may be the queue's own, which evicts nothing: no entry may stay for ever."""
_SOCKET_TIMEOUT: Final = 5.0


class RedisCache:
    """Implements `Cache` in Redis: one string a key, which Redis itself expires.

    :param redis: a client, which stays its owner's to close, or a URL.
    :param prefix: of the keys' names. Not within `deltafan:{`, where the queue's keys are.
    :param keep: seconds that an entry is kept at most, whatever its ttl says.
    :raises ConfigurationError: the URL is not one of Redis.
    """

    def __init__(self, redis: Redis | str, *, prefix: str = "deltafan:cache:", keep: float = KEEP) -> None:
        self._owned = isinstance(redis, str)
        self._redis = _connect(redis) if isinstance(redis, str) else redis
        self._prefix = prefix
        self._keep = keep

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        with translated("redis"):
            value = await self._redis.get(self._name(key))
        return value.encode() if isinstance(value, str) else value  # a client may be one that decodes

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        with translated("redis"):
            await self._redis.set(self._name(key), value, px=self._milliseconds(ttl))

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Store, if nothing is there.

        :raises CacheError: the store does not serve.
        """
        with translated("redis"):
            await self._redis.set(self._name(key), value, px=self._milliseconds(ttl), nx=True)

    async def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        with translated("redis"):
            await self._redis.delete(self._name(key))

    async def aclose(self) -> None:
        """See `Cache.aclose`."""
        if self._owned:
            await self._redis.aclose()

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _milliseconds(self, ttl: float | None) -> int:
        return max(1, int(min(self._keep, self._keep if ttl is None else ttl) * 1000))


def _connect(url: str) -> Redis:
    try:
        return Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),  # whoever waits for a cache would rather go without
            socket_timeout=_SOCKET_TIMEOUT,
            socket_connect_timeout=_SOCKET_TIMEOUT,
        )
    except ValueError:  # its message would show the URL, and with it a password
        rule = "must be a redis://, rediss:// or unix:// URL, of a single Redis; unset is the queue's, of whatever kind"
        raise ConfigurationError(f"cache_redis_url: {rule}") from None
