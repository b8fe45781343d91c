"""Listing a tenant's jobs, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from deltafan.broker.connections import redis_errors
from deltafan.broker.keys import Partition
from deltafan.broker.status import JobStatus, read_statuses
from deltafan.errors import FieldError, ValidationError
from deltafan.job import JOB_STATES

MAX_LIMIT = 500
_SCAN = 2000
"""Records looked at for one page. A rare state among many jobs takes several pages, some of them short."""


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
    whole = len(found) <= _SCAN  # else the page ends before the oldest of them
    found = found[:_SCAN]
    records: dict[str, JobStatus] = {}
    for number in range(partitions):
        ids = [job_id for _, job_id in found if int(job_id.partition("-")[0]) == number]
        if ids:
            records |= await read_statuses(redis, number, ids)
    page: list[JobStatus] = []
    for place, (created, job_id) in enumerate(found):
        record = records.get(job_id)
        if record is not None and (state is None or record.state == state):
            page.append(record)
        if len(page) == limit:
            last = place == len(found) - 1 and whole
            return JobPage(tuple(page), None if last else f"{created}:{job_id}")
    if whole and len(found) < _SCAN:
        return JobPage(tuple(page), None)
    created, job_id = found[-1]
    return JobPage(tuple(page), f"{created}:{job_id}")


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
