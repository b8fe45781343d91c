"""Listing a tenant's jobs, newest first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import Partition
from deltafan.broker.status import JobStatus, read_sketches, read_statuses
from deltafan.errors import FieldError, ValidationError
from deltafan.job import JOB_STATES, partition_of

T = TypeVar("T")
MAX_LIMIT = 500
_SCAN = 2000
"""Records looked at for one page. A rare state among many jobs takes several pages, some of them short."""
_PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of metadata in one page, which ends before its limit where jobs carry very much."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """`cursor` gives the next page; `None` is the end."""

    jobs: tuple[JobStatus, ...]
    cursor: str | None


async def list_jobs(
    redis: Redis, partitions: int, tenant: str, *, state: str | None, limit: int, cursor: str | None
) -> JobPage:
    """A page of jobs. The cursor is `<created ms>` of the last one seen, with its id to tell equals apart.

    :raises ValidationError: naming `state`, `limit` or `cursor`.
    """
    if state is not None and state not in JOB_STATES:
        raise ValidationError([FieldError("state", f"must be one of {', '.join(JOB_STATES)}")])
    if not 1 <= limit <= MAX_LIMIT:
        raise ValidationError([FieldError("limit", f"must be from 1 to {MAX_LIMIT}")])
    before = _parse_cursor(cursor)
    found: list[tuple[int, str]] = []
    for number in range(partitions):
        found += await _index_page(redis, number, tenant, before)
    found.sort(reverse=True)
    whole = len(found) < _SCAN  # else there may be older ones
    found = found[:_SCAN]
    sketches = await _by_partition(read_sketches, redis, [job_id for _, job_id in found])
    wanted: list[str] = []
    size, following = 0, None if whole else _cursor(found[-1])
    for place, (_, job_id) in enumerate(found):
        sketch = sketches.get(job_id)
        if sketch is not None and (state is None or sketch.state == state):
            wanted.append(job_id)
            size += sketch.metadata_bytes
        if len(wanted) == limit or size >= _PAGE_BYTES:
            following = None if whole and place == len(found) - 1 else _cursor(found[place])
            break
    records = await _by_partition(read_statuses, redis, wanted)
    return JobPage(tuple(records[job_id] for job_id in wanted if job_id in records), following)


async def _by_partition(
    read: Callable[[Redis, int, list[str]], Awaitable[Mapping[str, T]]], redis: Redis, ids: list[str]
) -> dict[str, T]:
    """One round trip a partition."""
    found: dict[str, T] = {}
    for number in sorted({partition_of(job_id) for job_id in ids}):
        found |= await read(redis, number, [job_id for job_id in ids if partition_of(job_id) == number])
    return found


def _cursor(seen: tuple[int, str]) -> str:
    return f"{seen[0]}:{seen[1]}"


def _parse_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    created, _, job_id = cursor.partition(":")
    if not (created.isascii() and created.isdigit() and len(created) <= 15 and job_id):
        raise ValidationError([FieldError("cursor", "must be the cursor of an earlier page")])
    return int(created), job_id


async def _index_page(redis: Redis, number: int, tenant: str, before: tuple[int, str] | None) -> list[tuple[int, str]]:
    highest = "+inf" if before is None else str(before[0])
    with redis_errors():
        rows: Any = await redis.zrevrangebyscore(
            Partition(number).index(tenant), highest, "-inf", start=0, num=_SCAN, withscores=True
        )
    pairs = [(int(score), member.decode()) for member, score in rows]
    return [pair for pair in pairs if before is None or pair < before]
