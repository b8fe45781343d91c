"""A cache in a folder: one JSON file an entry."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from deltafan.llm.cache.opening import translated
from deltafan.llm.cache.protocol import CorruptEntry, check_key

MAX_FOLDER_BYTES: Final = 1024**3
_HEAD: Final = re.compile(rb'\{"v":1,"key":"([0-9a-f]{64})","expires":(null|[0-9]+(?:\.[0-9]+)?),"value":')
_TAIL: Final = b"}\n"
_TEMPORARY: Final = ".new-"
_ABANDONED: Final = 3600.0  # seconds after which a temporary file has no writer any more
_PRUNED: Final = ".pruned"
_PRUNE_EVERY: Final = 3600.0  # seconds
_LOW_WATER: Final = 0.9  # of the bound: what a prune leaves, so that the next is not due at once


class FsCache:
    """Implements `Cache` in a folder, `ab/cd/<key>.json`. Safe for several processes on one machine.

    A write goes to a temporary file of its own and replaces the entry in one step; a reader sees one or the other.
    It is not flushed to the disk (no fsync): a power cut may take the newest entries, and one that it leaves torn is
    found by its missing end and counts as a miss. Files are readable by their owner only: they hold prompts.

    The folder is pruned at the first write after an hour without, by one process, and whenever this process has
    written a tenth of the bound: what has expired goes, then what was read longest ago.

    :param max_bytes: the sum of all entries' sizes that a prune allows.
    :param max_age: seconds that an entry without a ttl of its own is kept, at most.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_FOLDER_BYTES, max_age: float | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._written = 0
        self._pruning: asyncio.Task[int] | None = None

    async def get(self, key: str) -> bytes | None:
        """See `Cache.get`."""
        with translated("fs"):
            return await asyncio.to_thread(_read, self._path(key), key)

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """See `Cache.set`."""
        ttl = self._max_age if ttl is None else ttl
        expires = "null" if ttl is None else f"{time.time() + ttl:.3f}"
        data = f'{{"v":1,"key":"{key}","expires":{expires},"value":'.encode() + value + _TAIL
        with translated("fs"):
            await asyncio.to_thread(_write, self._path(key), data)
            self._written += len(data)
            due = self._written >= self._max_bytes // 10 or await asyncio.to_thread(self._due)
        if due and (self._pruning is None or self._pruning.done()):
            self._written = 0
            self._pruning = asyncio.create_task(self._prune_quietly())

    async def delete(self, key: str) -> None:
        """See `Cache.delete`."""
        with translated("fs"):
            await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def prune(self) -> int:
        """Remove what has expired, then what was read longest ago, until the bound holds. How many entries went.

        :raises CacheError: the folder cannot be read.
        """
        with translated("fs"):
            return await asyncio.to_thread(_prune, self._folder, self._max_bytes)

    async def aclose(self) -> None:
        """See `Cache.aclose`. Waits for a prune that runs."""
        if self._pruning is not None:
            await asyncio.wait({self._pruning})

    async def _prune_quietly(self) -> int:
        try:
            return await asyncio.to_thread(_prune, self._folder, self._max_bytes)
        except OSError:  # the folder went away, or is not ours to clean; writing to it says so
            return 0

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._folder / key[:2] / key[2:4] / f"{key}.json"

    def _due(self) -> bool:
        """Whether nobody has pruned lately. Touching the mark keeps the others from it."""
        mark = self._folder / _PRUNED
        try:
            due = time.time() - mark.stat().st_mtime >= _PRUNE_EVERY
        except FileNotFoundError:
            due = True
        if due:
            mark.touch(0o600)
        return due


def _read(path: Path, key: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    head = _HEAD.match(data)
    if head is None or not data.endswith(_TAIL) or head[1] != key.encode():
        raise CorruptEntry("the file is not an entry, or not a whole one")
    if head[2] != b"null" and float(head[2]) <= time.time():
        return None
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)  # read now: a prune takes the others first
    return data[head.end() : -len(_TAIL)]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


class _Found(NamedTuple):
    read: float
    size: int
    path: str


def _prune(folder: Path, max_bytes: int) -> int:
    now = time.time()
    removed, kept = 0, []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with suppress(OSError):  # another process may be pruning
                stat = os.stat(path)
                if name.startswith(_TEMPORARY) and now - stat.st_mtime > _ABANDONED:
                    os.unlink(path)
                elif not name.endswith(".json"):
                    continue
                elif _expired(path, now):
                    os.unlink(path)
                    removed += 1
                else:
                    kept.append(_Found(stat.st_mtime, stat.st_size, path))
    total = sum(found.size for found in kept)
    if total <= max_bytes:
        return removed
    for found in sorted(kept):
        if total <= max_bytes * _LOW_WATER:
            break
        with suppress(OSError):
            os.unlink(found.path)
            removed += 1
        total -= found.size
    return removed


def _expired(path: str, now: float) -> bool:
    with open(path, "rb") as file:
        head = _HEAD.match(file.read(256))
    return head is None or (head[2] != b"null" and float(head[2]) <= now)


def default_folder(xdg_cache_home: str | None, home: Path) -> Path:
    """Where the cache is when nobody says: `$XDG_CACHE_HOME/deltafan/completions`, or under `~/.cache`.

    A relative path in the variable does not count, as the XDG specification has it.
    """
    given = Path(xdg_cache_home) if xdg_cache_home else None
    root = given if given is not None and given.is_absolute() else home / ".cache"
    return root / "deltafan" / "completions"
