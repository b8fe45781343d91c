"""A cache in a collection of Qdrant, for those who run one anyway."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

from deltafan.llm.cache.opening import Once, require, translated
from deltafan.llm.cache.protocol import CorruptEntry, check_key

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

VERSION: Final = 1
_IDS: Final = UUID("5f0d3c1e-7a52-5b0f-9a63-0c6f0b6c1d24")  # the namespace of our points' ids
_MEMORY: Final = ":memory:"


class QdrantCache:
    """Implements `Cache` in a collection without vectors, which the first use creates. An entry is the payload of one
    point, whose id comes from the key.

    Local mode (a path, or `:memory:`) works within the event loop and reads every point at its start: it is for one
    process and some thousands of entries. Expiry goes by this machine's clock; `prune()` removes what has expired.

    :param location: a URL, a path, `:memory:`, or a client, which stays its owner's to close.
    :raises ConfigurationError: qdrant-client is not installed.
    """

    def __init__(
        self,
        location: AsyncQdrantClient | str,
        *,
        api_key: str | None = None,
        collection: str = "deltafan_cache",
    ) -> None:
        require("qdrant_client", "qdrant", "qdrant")
        self._location = location
        self._api_key = api_key
        self._collection = collection
        self._client = Once(self._open)

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        with translated("qdrant"):
            client = await self._client.get()
            points = await client.retrieve(self._collection, [_point(key)], with_payload=True, with_vectors=False)
        if not points:
            return None
        value, expires = _entry(points[0].payload, key)
        return None if expires is not None and expires <= time.time() else value.encode()

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        payload = {"v": VERSION, "key": key, "value": value.decode()}
        if ttl is not None:
            payload["expires"] = time.time() + ttl
        with translated("qdrant"):
            from qdrant_client.models import PointStruct

            client = await self._client.get()
            await client.upsert(self._collection, [PointStruct(id=_point(key), vector={}, payload=payload)])

    async def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        with translated("qdrant"):
            client = await self._client.get()
            await client.delete(self._collection, [_point(key)])

    async def prune(self) -> None:
        """Remove what has expired.

        :raises CacheError: the store does not serve.
        """
        with translated("qdrant"):
            client = await self._client.get()
            from qdrant_client.models import FieldCondition, Filter, FilterSelector, Range

            expired = FieldCondition(key="expires", range=Range(lte=time.time()))
            await client.delete(self._collection, FilterSelector(filter=Filter(must=[expired])))

    async def aclose(self) -> None:
        """See `Cache.aclose`."""
        client = await self._client.close()
        if client is not None and client is not self._location:
            await client.close()

    async def _open(self) -> AsyncQdrantClient:
        client = self._location
        if isinstance(client, str):
            await asyncio.to_thread(_load)  # a second, in which the loop goes on
            client = _connect(client, self._api_key)
        try:
            if not await client.collection_exists(self._collection):
                await self._create(client)
        except BaseException:
            if client is not self._location:
                await client.close()
            raise
        return client

    async def _create(self, client: AsyncQdrantClient) -> None:
        try:
            await client.create_collection(self._collection, vectors_config={})
        except Exception:
            if not await client.collection_exists(self._collection):  # else another process was first
                raise


def _load() -> None:
    import qdrant_client  # noqa: F401


def _connect(location: str, api_key: str | None) -> AsyncQdrantClient:
    from qdrant_client import AsyncQdrantClient

    if location == _MEMORY:
        return AsyncQdrantClient(location=location)
    if location.startswith(("http://", "https://")):
        return AsyncQdrantClient(url=location, api_key=api_key, check_compatibility=False)
    return AsyncQdrantClient(path=location)


def _point(key: str) -> str:
    return str(uuid5(_IDS, check_key(key)))


def _entry(payload: dict[str, Any] | None, key: str) -> tuple[str, float | None]:
    payload = payload or {}
    value, expires = payload.get("value"), payload.get("expires")
    whole = payload.get("v") == VERSION and payload.get("key") == key
    if whole and isinstance(value, str) and (expires is None or isinstance(expires, (int, float))):
        return value, expires
    raise CorruptEntry("the point's payload is not an entry")
