"""Settings of the cache."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from deltafan.llm.cache.fs import MAX_FOLDER_BYTES
from deltafan.llm.cache.guard import MAX_BYTES
from deltafan.llm.cache.pg_redis import HOT_TTL
from deltafan.llm.cache.postgres import Compression
from deltafan.settings import Seconds, Settings

Backend = Literal["fs", "redis", "pg_redis", "qdrant"]


class CacheSettings(Settings):
    cache_backend: Backend | None = Field(default=None, description="Where answers are cached; unset is nowhere.")
    cache_ttl: Seconds | None = Field(default=None, description="How long answers are kept; unset is no limit.")
    cache_timeout: Seconds = Field(default=0.5, description="How long the cache may take before it is passed by.")
    cache_max_bytes: int = Field(default=MAX_BYTES, ge=1024, description="Size of the largest entry.")
    cache_pace: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Deltas a second of a cached answer; unset is at once."
    )
    cache_dir: str = Field(default="", description="Folder of the fs cache; empty is one in the user's cache folder.")
    cache_dir_bytes: int = Field(default=MAX_FOLDER_BYTES, ge=1024, description="Size of the fs cache.")
    cache_redis_url: SecretStr | None = Field(
        default=None,
        description="A single Redis for the redis and pg_redis caches; unset is the queue's, of whatever kind.",
    )
    cache_postgres_url: SecretStr | None = Field(
        default=None, description="PostgreSQL of the pg_redis cache, as a URL."
    )
    cache_compression: Compression = Field(default="zlib", description="How pg_redis packs what it keeps.")
    cache_hot_ttl: Seconds = Field(default=HOT_TTL, description="How long pg_redis keeps an entry in Redis.")
    cache_qdrant_url: str = Field(default="", description="Qdrant server, as a URL, or a folder for its local mode.")
    cache_qdrant_api_key: SecretStr | None = Field(default=None, description="The Qdrant server's key.")
