"""A job's events as one JSON answer: what there is now.

It is written page by page as the log is read, so that a long log takes no more memory than a page.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from aiohttp import web

from deltafan.broker.log import Entry, compact, read_all
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.status import JobStatus
from deltafan.events import EventId
from deltafan.relay.client import STALL_SECONDS
from deltafan.relay.redaction import shown
from deltafan.tokens import Hidden
from deltafan.wire import dumps

logger = logging.getLogger("deltafan.relay")
_HEADERS = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}


async def snapshot(
    request: web.Request,
    queue: AsyncQueue,
    status: JobStatus,
    after: EventId | None,
    reset: str | None,
    hide: frozenset[Hidden],
) -> web.StreamResponse:
    """The state was read before the events: one that has ended means that they are complete.

    :param hide: what the reader does not get to see.

    :raises ConnectionError: the client has left or takes nothing, or Redis failed half-way: the answer is cut off.
    """
    head = {"job": status.id, "state": status.state} | ({"reset": reset} if reset else {})
    response = web.StreamResponse(headers=_HEADERS)
    async with aclosing(read_all(queue.connections.commands, status.id, after)) as pages:
        page: list[Entry] = await anext(pages, [])  # before the first byte: a failure here has an answer of its own
        await response.prepare(request)
        try:
            await _write(response, dumps(head)[:-1] + b',"events":[')
            separator = b""
            while page:
                after = page[-1].id
                await _write(response, separator + _joined(status.id, page, hide))
                separator = b","
                page = await anext(pages, [])
            await _write(response, b'],"last_id":%b}' % dumps(None if after is None else str(after)))
            await response.write_eof()
        except Exception as error:
            if not isinstance(error, ConnectionError):
                logger.warning("the snapshot of %s is cut off: %r", status.id, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the snapshot was cut off") from error
    return response


def _joined(job_id: str, page: list[Entry], hide: frozenset[Hidden]) -> bytes:
    return b",".join(shown(entry, hide) for entry in compact(job_id, page))


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(STALL_SECONDS):
        await response.write(data)
