"""The seam of caches: bytes under a key, for a while."""

from __future__ import annotations

import re
from typing import Final, Protocol

from deltafan.errors import DeltafanError

_KEY: Final = re.compile(r"[0-9a-f]{64}")


class CacheError(DeltafanError):
    """The store of a cache cannot be reached, or refuses to serve."""

    code = "cache_unavailable"
    retryable = True


class CorruptEntry(CacheError):
    """What is stored under the key is not what was stored there."""

    code = "cache_corrupt"
    retryable = False


class Cache(Protocol):
    """Keeps entries by key. Any object with these methods will do.

    Keys are 64 lower-case hexadecimal digits (`cache_key` makes them): fit for a file name, safe in any command.
    Values are JSON in UTF-8, and come back byte for byte.

    What may be lost: anything, at any time. A cache may evict, and a write that was answered may be gone after a
    power cut. What may not happen: that a reader gets half a value, another key's value, or one whose time is over.

    Writers of one key, in one process or in several, do not disturb each other: a reader sees the one value or the
    other, and in the end one of them stands. All methods may be called concurrently, from one event loop, and may be
    cancelled at any point: then a write has happened, or it has not.
    """

    async def get(self, key: str) -> bytes | None:
        """The value, or `None` if there is none, or its time is over.

        :raises CorruptEntry: something is there that cannot be read. It counts as a miss; a `set` replaces it.
        :raises CacheError: the store does not serve.
        """
        ...

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Store, over what may be there.

        :param ttl: seconds until it is gone; `None` is as long as the cache keeps anything.
        :raises CacheError: the store does not serve.
        """
        ...

    async def delete(self, key: str) -> None:
        """Forget, if it is there.

        :raises CacheError: the store does not serve.
        """
        ...

    async def aclose(self) -> None:
        """Close what the cache itself opened; what it was given stays open. Twice is allowed."""
        ...


def check_key(key: str) -> str:
    """The key itself.

    :raises CacheError: it is not one; it could name a file or a row that is none of the cache's.
    """
    if _KEY.fullmatch(key) is None:
        raise CacheError("key: must be 64 lower-case hexadecimal digits")
    return key
