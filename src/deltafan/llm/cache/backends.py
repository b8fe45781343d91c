"""Caches by name."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from redis.asyncio import Redis

from deltafan.errors import ConfigurationError
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.cache.pg_redis import PgRedisCache
from deltafan.llm.cache.postgres import PostgresCache
from deltafan.llm.cache.protocol import Cache
from deltafan.llm.cache.qdrant import QdrantCache
from deltafan.llm.cache.redis import RedisCache
from deltafan.llm.cache.settings import CacheSettings
from deltafan.telemetry.hooks import Hook, silent


def open_cache(
    settings: CacheSettings,
    *,
    folder: Path,
    redis: Redis | str | None = None,
    hook: Hook = silent,
) -> Cache | None:
    """The cache that the settings name, or `None`. Nothing is connected or created before its first use; close it.

    :param folder: of the fs cache, and of Qdrant's local mode, where the settings name none (see `default_folder`).
    :param redis: a client or a URL, where the settings name none. A client stays its owner's to close.
    :raises ConfigurationError: a setting that the backend needs is missing, or an optional dependency; names it.
    """
    match settings.cache_backend:
        case None:
            return None
        case "fs":
            chosen = Path(settings.cache_dir).expanduser() if settings.cache_dir else folder
            return FsCache(chosen, max_bytes=settings.cache_dir_bytes)
        case "redis":
            return _redis(settings, redis)
        case "pg_redis":
            durable = PostgresCache(
                _needed(settings.cache_postgres_url, "cache_postgres_url", "pg_redis"),
                compression=settings.cache_compression,
            )
            return PgRedisCache(
                durable,
                _redis(settings, redis),
                hot_ttl=settings.cache_hot_ttl,
                max_bytes=settings.cache_max_bytes,
                hook=hook,
            )
        case "qdrant":
            key = settings.cache_qdrant_api_key
            return QdrantCache(
                settings.cache_qdrant_url or str(folder / "qdrant"), api_key=key.get_secret_value() if key else None
            )


def _redis(settings: CacheSettings, given: Redis | str | None) -> RedisCache:
    if settings.cache_redis_url is not None:
        given = settings.cache_redis_url.get_secret_value()
    if given is None:
        raise ConfigurationError(f"cache_redis_url: is required for cache_backend {settings.cache_backend}")
    return RedisCache(given)


def _needed(secret: SecretStr | None, name: str, backend: str) -> str:
    if secret is None:
        raise ConfigurationError(f"{name}: is required for cache_backend {backend}")
    return secret.get_secret_value()
