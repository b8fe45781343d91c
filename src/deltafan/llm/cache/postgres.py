"""A cache in a table of PostgreSQL."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from deltafan.errors import ConfigurationError
from deltafan.llm.cache.opening import Once, require, translated
from deltafan.llm.cache.protocol import CacheError, CorruptEntry, check_key

if TYPE_CHECKING:
    import asyncpg  # type: ignore[import-untyped]

Compression = Literal["none", "zlib"]
SCHEMA: Final = 1
_COMMENT: Final = f"deltafan cache, schema {SCHEMA}"
_TABLE: Final = re.compile(r"[a-z_][a-z0-9_]{0,49}")
_CONNECTIONS: Final = 8
_COMMAND_TIMEOUT: Final = 10.0
_SWEEP_EVERY: Final = 256  # writes between two removals of what has expired
_SWEEP_ROWS: Final = 1000
_MAX_UNPACKED: Final = 64 * 1024 * 1024  # what a row may unpack to: a broken one must not fill the memory


class Row(NamedTuple):
    value: bytes
    ttl: float | None
    """Seconds that it has left; `None` is no limit."""


class PostgresCache:
    """Implements `Cache` in a table, which the first use creates, whoever comes first. The server's clock decides.

    Every 256 writes, some rows that have expired are removed; `prune()` removes all of them.

    :param postgres: a DSN (`postgresql://…`), or a pool, which stays its owner's to close.
    :param table: its name: lower-case letters, digits and underscores.
    :param compression: of values that are written; both are read.
    :raises ConfigurationError: asyncpg is not installed, or the table's name is not one.
    """

    def __init__(
        self, postgres: asyncpg.Pool | str, *, table: str = "deltafan_cache", compression: Compression = "zlib"
    ) -> None:
        require("asyncpg", "postgres", "pg_redis")
        if _TABLE.fullmatch(table) is None:
            raise ConfigurationError("table: must be 1 to 50 lower-case letters, digits and underscores")
        self._given = postgres
        self._table = table
        self._compression = compression
        self._pool = Once(self._open)
        self._writes = 0

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        row = await self.read(key)
        return None if row is None else row.value

    async def read(self, key: str) -> Row | None:
        """As `get`, with the time that is left."""
        check_key(key)
        with translated("postgres"):
            pool = await self._pool.get()
            found = await pool.fetchrow(
                f"SELECT value, codec, extract(epoch FROM expires - now())::float8 AS ttl FROM {self._table}"  # noqa: S608 - checked
                " WHERE key = $1 AND (expires IS NULL OR expires > now())",
                key,
            )
        return None if found is None else Row(_unpack(found["value"], found["codec"]), found["ttl"])

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        check_key(key)
        packed = zlib.compress(value) if self._compression == "zlib" else value
        with translated("postgres"):
            pool = await self._pool.get()
            await pool.execute(
                f"INSERT INTO {self._table} (key, value, codec, expires)"  # noqa: S608 - checked
                " VALUES ($1, $2, $3, now() + make_interval(secs => $4))"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value, codec = excluded.codec,"
                " created = now(), expires = excluded.expires",
                key,
                packed,
                self._compression,
                ttl,
            )
            self._writes += 1
            if self._writes % _SWEEP_EVERY == 0:
                await self._sweep(pool)

    async def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        check_key(key)
        with translated("postgres"):
            pool = await self._pool.get()
            await pool.execute(f"DELETE FROM {self._table} WHERE key = $1", key)  # noqa: S608 - checked

    async def prune(self) -> int:
        """Remove what has expired. How many entries went.

        :raises CacheError: the store does not serve.
        """
        removed = 0
        with translated("postgres"):
            pool = await self._pool.get()
            while swept := await self._sweep(pool):
                removed += swept
        return removed

    async def aclose(self) -> None:
        """See `Cache.aclose`."""
        pool = await self._pool.close()
        if pool is not None and pool is not self._given:
            await pool.close()

    async def _sweep(self, pool: asyncpg.Pool) -> int:
        """Remove some rows that have expired; those that another process is removing are left to it."""
        tag: str = await pool.execute(
            f"DELETE FROM {self._table} WHERE key IN (SELECT key FROM {self._table}"  # noqa: S608 - checked
            " WHERE expires <= now() LIMIT $1 FOR UPDATE SKIP LOCKED)",
            _SWEEP_ROWS,
        )
        return int(tag.rpartition(" ")[2])

    async def _open(self) -> asyncpg.Pool:
        pool = self._given
        if isinstance(pool, str):
            from asyncpg import create_pool

            pool = await create_pool(pool, min_size=1, max_size=_CONNECTIONS, command_timeout=_COMMAND_TIMEOUT)
        try:
            await self._create(pool)
        except BaseException:
            if pool is not self._given:
                pool.terminate()
            raise
        return pool

    async def _create(self, pool: asyncpg.Pool) -> None:
        """Create the table, if it is not there yet.

        :raises CacheError: a table of that name is there, and is of another schema.
        """
        async with pool.acquire() as connection:
            if await self._exists(connection):
                return
            try:
                async with connection.transaction():
                    await connection.execute(
                        f"CREATE TABLE {self._table} (key text PRIMARY KEY, value bytea NOT NULL, codec text NOT NULL,"
                        " created timestamptz NOT NULL DEFAULT now(), expires timestamptz);"
                        f"CREATE INDEX ON {self._table} (expires) WHERE expires IS NOT NULL;"
                        f"COMMENT ON TABLE {self._table} IS '{_COMMENT}'"
                    )
            except Exception:
                # Of several that create it at once, one does; the others fail when it has (IF NOT EXISTS or not).
                if not await self._exists(connection):
                    raise

    async def _exists(self, connection: asyncpg.pool.PoolConnectionProxy) -> bool:
        found = await connection.fetchrow(
            "SELECT obj_description(to_regclass($1), 'pg_class') AS comment, to_regclass($1) IS NOT NULL AS there",
            self._table,
        )
        if found is None or not found["there"]:
            return False
        if found["comment"] != _COMMENT:
            raise CacheError(f"postgres: table {self._table} is not of this version's form ({_COMMENT})")
        return True


def _unpack(packed: bytes, codec: str) -> bytes:
    if codec == "none":
        return packed
    if codec == "zlib":
        with suppress(zlib.error):
            unpacking = zlib.decompressobj()
            value = unpacking.decompress(packed, _MAX_UNPACKED)
            if unpacking.eof:
                return value
    raise CorruptEntry("the row cannot be unpacked")
