"""Following jobs: one subscription connection, one `Feed` a followed job, any number of followers.

Joining: subscribe and buffer, read the log, merge by id, go live. No event is missed (the subscription is confirmed
before the log is read), none comes twice (ids rise), and a hole between two live events is read from the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Protocol, Self

from redis.exceptions import ResponseError

from deltafan.broker.connections import Connections
from deltafan.broker.keys import partition
from deltafan.broker.log import Entry, compact, follows, last_id, read_page
from deltafan.broker.status import JobStatus, read_status
from deltafan.broker.subscriber import Subscriber
from deltafan.errors import BrokerUnavailable, ConfigurationError, JobNotFound
from deltafan.events import EventId
from deltafan.wire import parse_event_id

TAIL = 512
"""Live events a feed remembers for followers that are still reading the log. Who falls further behind reads again."""
TAIL_BYTES = 1024 * 1024
"""Bytes of them, at most."""
PENDING = 10_000
"""Live messages a feed holds while it mends a hole. Beyond it they are dropped: the log has them."""
REREAD_MIN, REREAD_MAX = 0.05, 1.0
"""Seconds until a joining follower looks again at a log that does not hold what its feed has seen."""
AUDIT_INTERVAL = 10.0
"""Seconds without news after which a feed compares itself with the job's record."""


class Follower(Protocol):
    """Who follows a feed. Both are called in the order of the events, each event once, and never concurrently.

    `live` must not block: it writes to a buffer of its own bound. `gone` says that the job's record has vanished.
    """

    def live(self, entry: Entry) -> None: ...

    def gone(self) -> None: ...


Replay = Callable[[list[Entry]], Awaitable[None]]


class Feed:
    """The live events of one job in this process."""

    def __init__(self, hub: Hub, job_id: str) -> None:
        self.job_id = job_id
        self.users = 0
        self._hub = hub
        self._beginning = f'{{"v":1,"job":"{job_id}","id":"'.encode()  # of every event of the job, see `wire.encode`
        self._followers: dict[Follower, EventId | None] = {}  # and up to where each has read the log
        self._tail: deque[Entry] = deque()
        self._tail_bytes = 0
        self._last: EventId | None = None
        self._ready: asyncio.Task[None] | None = None
        self._repair: asyncio.Task[None] | None = None
        self._pending: deque[Entry] = deque(maxlen=PENDING)
        self.quiet_since = asyncio.get_running_loop().time()

    @property
    def channel(self) -> str:
        return partition(self.job_id).live(self.job_id)

    async def open(self) -> None:
        """Subscribe, once for all followers."""
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.create_task(
                self._hub.subscriber.subscribe(self.channel, self._on_message, self._on_gap)
            )
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        # First and without waiting: the job's next feed may subscribe at any moment, and its place must not be taken.
        await self._hub.subscriber.unsubscribe(self.channel)
        for task in (self._ready, self._repair):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def join(self, after: EventId | None, replay: Replay, follower: Follower) -> None:
        """Bring a follower from its cursor to the live end, and leave it there; `leave` ends it.

        The replay is compacted. A follower whose replay ends with `done` does not go live.
        """
        cursor = end = after
        wait = REREAD_MIN
        while True:
            page = await read_page(self._hub.commands, self.job_id, cursor)
            if page.entries:
                cursor = end = page.entries[-1].id
                await replay(compact(self.job_id, page.entries))
                if page.entries[-1].type == "done":
                    return
            else:  # a cursor may be ahead of the log: the feed of all must not begin there
                end = cursor and await last_id(self._hub.commands, self.job_id)
            if page.ended and self._go_live(cursor, end, follower):
                return
            if not page.entries:
                await asyncio.sleep(wait)
                wait = min(wait * 2, REREAD_MAX)
                if await self._record() is None:
                    follower.gone()
                    return

    def _go_live(self, cursor: EventId | None, end: EventId | None, follower: Follower) -> bool:
        """Without waiting, so that no event comes between: hand over what came meanwhile, and listen.

        :param end: where the log ends, as far as it has been read.
        """
        missed: list[Entry] = []
        if self._last is not None and (cursor is None or self._last > cursor):
            missed = [e for e in self._tail if cursor is None or e.id > cursor]
            first = missed[0].id if missed else None
            if first is None or not (first == EventId(1, 0) if cursor is None else follows(cursor, first)):
                return False
        elif self._last is None and not self._followers:
            self._last = cursor and end and min(cursor, end)
        self._followers[follower] = cursor
        for entry in missed:
            follower.live(entry)
        return True

    def leave(self, follower: Follower) -> None:
        self._followers.pop(follower, None)

    def _on_message(self, data: bytes) -> None:
        try:
            entry = Entry.of(data)
        except ValueError:
            return  # somebody else published on our channel
        if not data.startswith(self._beginning):
            return
        if self._repair is not None:
            self._pending.append(entry)
        elif self._last is None or follows(self._last, entry.id):
            self._dispatch(entry)
        elif entry.id > self._last:
            self._pending.append(entry)
            self._on_gap()

    def _dispatch(self, entry: Entry) -> None:
        self._last = entry.id
        self._remember(entry)
        self.quiet_since = asyncio.get_running_loop().time()
        for follower, read in tuple(self._followers.items()):
            if read is None or entry.id > read:
                follower.live(entry)

    def _remember(self, entry: Entry) -> None:
        self._tail.append(entry)
        self._tail_bytes += len(entry.data)
        while len(self._tail) > TAIL or self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft().data)

    def _on_gap(self) -> None:
        if self._repair is None:
            self._repair = asyncio.create_task(self._mend(), name=f"deltafan-mend-{self.job_id}")

    async def _mend(self) -> None:
        """Read from the log what the subscription did not bring."""
        wait, empty = 0.05, True
        while True:
            try:
                page = await read_page(self._hub.commands, self.job_id, self._last)
                empty = empty and not page.entries
                if empty and await self._record() is None:
                    self._gone()
            except (BrokerUnavailable, ConfigurationError, ResponseError):  # an operator may mend any while we wait
                await asyncio.sleep(wait)
                wait = min(wait * 2, 2.0)
                continue
            for entry in page.entries:
                self._dispatch(entry)
            if page.ended:
                break
        # What came meanwhile is newer than what was read, or already known.
        while self._pending:
            entry = self._pending.popleft()
            if self._last is None or follows(self._last, entry.id):
                self._dispatch(entry)
            elif entry.id > self._last:
                self._pending.clear()
                self._repair = asyncio.create_task(self._mend(), name=f"deltafan-mend-{self.job_id}")
                return
        self._repair = None

    async def audit(self) -> None:
        """Compare with the job's record: a message lost without a trace is found here, and so is a lost job."""
        self.quiet_since = asyncio.get_running_loop().time()
        record = await self._record()
        if record is None:
            self._gone()
        elif record.last_id is not None and (self._last is None or parse_event_id(record.last_id) > self._last):
            self._on_gap()

    def _gone(self) -> None:
        for follower in tuple(self._followers):
            follower.gone()

    async def _record(self) -> JobStatus | None:
        try:
            return await read_status(self._hub.commands, self.job_id)
        except JobNotFound:
            return None


class Hub:
    """The feeds of this process. Open it with `async with`.

    :param on_loss: see `Subscriber`.
    """

    def __init__(self, connections: Connections, on_loss: Callable[[], None] | None = None) -> None:
        self.commands = connections.commands
        self.subscriber = Subscriber(connections, on_loss)
        self.feeds: dict[str, Feed] = {}
        self._auditor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.subscriber.__aenter__()
        self._auditor = asyncio.create_task(self._audit(), name="deltafan-auditor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._auditor is not None:
            self._auditor.cancel()
            await asyncio.gather(self._auditor, return_exceptions=True)
        for feed in tuple(self.feeds.values()):
            await feed.close()
        await self.subscriber.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def feed(self, job_id: str) -> AsyncIterator[Feed]:
        """The job's feed, subscribed, for as long as somebody uses it.

        :raises BrokerUnavailable: the subscription cannot be had.
        """
        feed = self.feeds.get(job_id)
        if feed is None:
            feed = self.feeds[job_id] = Feed(self, job_id)
        feed.users += 1
        try:
            await feed.open()
            yield feed
        finally:
            feed.users -= 1
            if feed.users == 0 and self.feeds.get(job_id) is feed:
                del self.feeds[job_id]
                await feed.close()

    async def _audit(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(AUDIT_INTERVAL / 4)
            for feed in tuple(self.feeds.values()):
                if loop.time() - feed.quiet_since < AUDIT_INTERVAL:
                    continue
                try:
                    await feed.audit()
                except (BrokerUnavailable, ConfigurationError):
                    break  # the next round finds out
                except (ResponseError, ValueError):
                    continue  # another program wrote to this job's record, which must cost no other job its audit
