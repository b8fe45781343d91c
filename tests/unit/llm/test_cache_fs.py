"""The cache in a folder: many processes, torn files, bounds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from deltafan.llm.cache import CacheError, CorruptEntry
from deltafan.llm.cache.fs import FsCache, default_folder


def key(name: str = "one") -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def file_of(folder: Path, name: str = "one") -> Path:
    (path,) = folder.rglob(f"{key(name)}.json")
    return path


def files(folder: Path, pattern: str = "*.json") -> list[Path]:
    return list(folder.rglob(pattern))


_WRITER = """
import asyncio, pathlib, sys, orjson
from deltafan.llm.cache.fs import FsCache
folder, me, keys = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
async def main():
    cache = FsCache(folder)
    for round in range(60):
        for key in keys:
            await cache.set(key, orjson.dumps({"by": me, "round": round, "text": me * (1 + round * 200)}))
            found = orjson.loads(await cache.get(key))
            assert found["text"] == found["by"] * (1 + found["round"] * 200), "half a value"
    await cache.aclose()
asyncio.run(main())
"""


async def test_writers_in_several_processes_never_show_half_an_entry(tmp_path: Path) -> None:
    keys = [key(str(n)) for n in range(3)]
    writers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _WRITER, str(tmp_path), me, *keys), stderr=subprocess.PIPE
        )
        for me in "abcd"
    ]
    ended = await asyncio.gather(*(writer.communicate() for writer in writers))
    assert [(writer.returncode, errors) for writer, (_, errors) in zip(writers, ended, strict=True)] == [(0, b"")] * 4
    assert sorted(path.name for path in files(tmp_path)) == sorted(f"{key}.json" for key in keys)
    assert files(tmp_path, ".new-*") == [], "no temporary file stays"


async def test_an_entry_is_one_json_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    cache = FsCache(tmp_path / "new" / "folder")
    await cache.set(key(), b'{"text":"secret"}', ttl=60)
    path = file_of(tmp_path)
    held = orjson.loads(path.read_bytes())
    assert (held["v"], held["key"], held["value"]) == (1, key(), {"text": "secret"})
    assert time.time() < held["expires"] < time.time() + 61
    assert path.stat().st_mode & 0o077 == 0
    await cache.aclose()


@pytest.mark.parametrize("length", [0, 1, 40, 100, -1, -2])
async def test_a_torn_file_is_corrupt(tmp_path: Path, length: int) -> None:
    cache = FsCache(tmp_path)
    await cache.set(key(), orjson.dumps({"text": "x" * 100}))
    await cache.aclose()  # a prune that still ran would clear the torn file away
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptEntry):
        await cache.get(key())


async def test_a_file_under_another_entrys_name_is_corrupt(tmp_path: Path) -> None:
    cache = FsCache(tmp_path)
    await cache.set(key("one"), b"{}")
    await cache.set(key("two"), b"{}")
    os.replace(file_of(tmp_path, "one"), file_of(tmp_path, "two"))
    with pytest.raises(CorruptEntry):
        await cache.get(key("two"))
    await cache.aclose()


async def test_a_folder_that_cannot_be_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FsCache(tmp_path / "file" / "folder")
    with pytest.raises(CacheError, match="fs: "):
        await cache.set(key(), b"{}")
    await cache.aclose()


async def test_the_bound_holds_and_what_was_read_lately_stays(tmp_path: Path) -> None:
    filling, cache = FsCache(tmp_path), FsCache(tmp_path, max_bytes=20_000)
    for n in range(100):
        await filling.set(key(str(n)), orjson.dumps({"text": "x" * 1000}))
        os.utime(file_of(tmp_path, str(n)), (n, n))
    await filling.aclose()
    assert await cache.get(key("50"))
    await cache.prune()
    kept = {path.stem for path in files(tmp_path)}
    assert 10 <= len(kept) <= 20
    assert key("50") in kept
    assert key("99") in kept
    assert key("0") not in kept


async def test_writing_prunes_by_itself(tmp_path: Path) -> None:
    for batch in range(20):
        cache = FsCache(tmp_path, max_bytes=20_000)
        for n in range(5):
            await cache.set(key(f"{batch} {n}"), orjson.dumps({"text": "x" * 1000}))
        await cache.aclose()
        written_since = 5 * 1200
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 20_000 + written_since
    assert len(files(tmp_path)) >= 10


async def test_a_file_that_a_killed_writer_left_goes_after_an_hour(tmp_path: Path) -> None:
    cache = FsCache(tmp_path)
    await cache.set(key(), b"{}")
    old, new = tmp_path / "ab" / ".new-old", tmp_path / "ab" / ".new-new"
    old.parent.mkdir(exist_ok=True)
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    await cache.prune()
    assert (old.exists(), new.exists()) == (False, True), "the other may still be written"
    await cache.aclose()


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        (None, "/home/me/.cache/deltafan/completions"),
        ("", "/home/me/.cache/deltafan/completions"),
        ("relative", "/home/me/.cache/deltafan/completions"),
        ("/var/cache/me", "/var/cache/me/deltafan/completions"),
    ],
)
def test_the_default_folder_is_where_the_user_keeps_caches(given: str | None, folder: str) -> None:
    assert default_folder(given, Path("/home/me")) == Path(folder)
