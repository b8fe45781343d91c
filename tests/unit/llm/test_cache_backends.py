"""Caches by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from deltafan.errors import ConfigurationError
from deltafan.llm.cache.backends import open_cache
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.cache.pg_redis import PgRedisCache
from deltafan.llm.cache.qdrant import QdrantCache
from deltafan.llm.cache.redis import RedisCache
from deltafan.llm.cache.settings import CacheSettings


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"cache_backend": "fs"}, FsCache),
        ({"cache_backend": "redis"}, RedisCache),
        ({"cache_backend": "redis", "cache_redis_url": "redis://other:1/0"}, RedisCache),
        ({"cache_backend": "pg_redis", "cache_postgres_url": "postgresql://h/d"}, PgRedisCache),
        ({"cache_backend": "qdrant"}, QdrantCache),
        ({"cache_backend": None}, type(None)),
    ],
)
async def test_a_name_opens_its_cache_and_nothing_is_created_yet(
    settings: dict[str, Any], kind: type, tmp_path: Path
) -> None:
    cache = open_cache(CacheSettings(**settings), folder=tmp_path / "cache", redis="redis://127.0.0.1:1/0")
    assert isinstance(cache, kind)
    if cache is not None:
        await cache.aclose()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "redis", "rule"),
    [
        ({"cache_backend": "redis"}, None, "cache_redis_url: is required"),
        ({"cache_backend": "pg_redis"}, "redis://h/0", "cache_postgres_url: is required"),
        ({"cache_backend": "redis", "cache_redis_url": "http://h"}, None, "cache_redis_url: must be a redis"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, Any], redis: str | None, rule: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        open_cache(CacheSettings(**settings), folder=tmp_path, redis=redis)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(pydantic.ValidationError, match="'fs', 'redis', 'pg_redis' or 'qdrant'"):
        CacheSettings(cache_backend="disk")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("asyncpg", "from deltafan.llm.cache.postgres import PostgresCache as C; C('postgresql://h/d')", "postgres"),
        ("qdrant_client", "from deltafan.llm.cache.qdrant import QdrantCache as C; C(':memory:')", "qdrant"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(module: str, make: str, extra: str) -> None:
    """Its finder says that it is not there, as on a machine without it."""
    code = f"""import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name == "{module}" else found(name, *more)
from deltafan.errors import ConfigurationError
try:
    {make}
except ConfigurationError as error:
    print(error)"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.startswith("cache_backend: ")
    assert ended.stdout.endswith(f" needs {module}, which is not installed: pip install 'deltafan[{extra}]'\n")


def test_the_ring_loads_no_store() -> None:
    code = """import sys
import deltafan.llm.cache
print(*sorted(name for name in ("redis", "asyncpg", "qdrant_client", "openai", "numpy") if name in sys.modules))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == []
