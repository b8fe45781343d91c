"""Filling a cache before it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from deltafan.errors import CompletionError
from deltafan.llm.checks import invalid, is_count
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions, Started


@dataclass(slots=True)
class Warmed:
    """What came of it."""

    cached: int = 0
    """Requests that were answered from the cache."""
    completed: int = 0
    """Requests that a provider answered."""
    failed: list[tuple[int, CompletionError]] = field(default_factory=list)
    """The others: the place of the request, from 0, and why. In the order in which they failed."""


async def warm_cache(completions: Completions, requests: Iterable[Request], *, concurrency: int = 8) -> Warmed:
    """Run the requests through a `Cached` ring, so that it holds their answers. A failure does not stop the others.

    :param requests: read as they are needed: a generator of a million is fine.
    :param concurrency: how many run at once.
    :raises ValidationError: `concurrency` is no whole number, 1 or more. What `requests` raises ends it, too.
    """
    if not is_count(concurrency):
        raise invalid("concurrency", "must be a whole number, 1 or more")
    warmed = Warmed()
    numbered = enumerate(requests)

    async def work() -> None:
        for number, request in numbered:  # shared: each takes the next
            try:
                if await _answered_from_cache(completions, request):
                    warmed.cached += 1
                else:
                    warmed.completed += 1
            except CompletionError as error:
                warmed.failed.append((number, error))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return warmed


async def _answered_from_cache(completions: Completions, request: Request) -> bool:
    cached = False
    async with aclosing(completions.stream(request)) as events:  # to its end: then the answer is stored
        async for event in events:
            if isinstance(event, Started):
                cached = event.cached
    return cached
