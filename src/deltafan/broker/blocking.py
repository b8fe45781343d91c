"""The queue for code without an event loop: the async one, driven on one background thread of the process."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from deltafan.broker.cancel import CancelOutcome
from deltafan.broker.enqueue import Enqueued
from deltafan.broker.keys import partition
from deltafan.broker.listing import JobPage
from deltafan.broker.queue import AsyncJob, AsyncQueue, JobResult, job_ids
from deltafan.broker.status import JobStatus
from deltafan.events import Event, EventId
from deltafan.job import JobSpec
from deltafan.tokens import Hidden

T = TypeVar("T")
_CLOSE_SECONDS = 2.0
"""How long the end of the process waits for connections to close."""


class Portal:
    """An event loop in a daemon thread, into which other threads hand coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deltafan-portal", daemon=True)
        self._thread.start()
        self._open: set[AsyncQueue] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and give the result; an interrupted wait cancels it."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking queue cannot be used in its own thread: use AsyncQueue there")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The items, one at a time; leaving the loop closes the async generator."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():
                self.run(_close(items))

    def own(self, make: Callable[[], AsyncQueue]) -> AsyncQueue:
        """Make a queue in the loop, and close it at the end of the process at the latest."""
        queue = self.run(_call(make))
        self._open.add(queue)
        return queue

    def close(self, queue: AsyncQueue) -> None:
        if queue in self._open:
            self._open.discard(queue)
            self.run(queue.aclose())

    def shut_down(self) -> None:
        """For the end of the process."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        future = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        try:
            future.result(_CLOSE_SECONDS)
        except (TimeoutError, OSError):
            return  # the sockets close with the process
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _finish(self) -> None:
        for queue in tuple(self._open):
            await queue.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


async def _call(make: Callable[[], T]) -> T:
    return make()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


async def _close(items: AsyncGenerator[T, None]) -> None:
    await items.aclose()


_lock = threading.Lock()
_portals: dict[int, Portal] = {}
"""By process id. A forked child has its own; its parent's stay referenced, so that nothing of theirs is closed."""


def _portal() -> Portal:
    pid = os.getpid()
    with _lock:
        portal = _portals.get(pid)
        if portal is None:
            portal = _portals[pid] = Portal()
            atexit.register(_shut_down, pid)
        return portal


def _shut_down(pid: int) -> None:
    if os.getpid() == pid:
        _portals[pid].shut_down()


def _renew_lock() -> None:
    global _lock  # a fork may have copied it while another thread held it
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Job:
    """A handle on a job, by its id. See `AsyncJob`."""

    def __init__(self, queue: BlockingQueue, job_id: str) -> None:
        self._queue = queue
        self.id = job_id
        self.channel = partition(job_id).live(job_id)
        """The Redis pub/sub channel on which the job's events are published."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def events(self, after: str | EventId | None = None) -> Generator[Event, None, None]:
        """As `AsyncJob.events`: a plain generator."""
        return _portal().iterate(self._handle().events(after))

    def sse(self, after: str | EventId | None = None) -> Generator[bytes, None, None]:
        """As `AsyncJob.sse`: a plain generator, for Django's or Flask's streaming answers."""
        return _portal().iterate(self._handle().sse(after))

    def result(self, timeout: float | None = None) -> JobResult:
        """As `AsyncJob.result`."""
        return _portal().run(self._handle().result(timeout))

    def status(self) -> JobStatus:
        """As `AsyncJob.status`."""
        return _portal().run(self._handle().status())

    def cancel(self) -> CancelOutcome:
        """As `AsyncJob.cancel`."""
        return _portal().run(self._handle().cancel())

    def token(self, *, cancel: bool = False, ttl: float | None = None, hide: Collection[Hidden] = ()) -> str:
        """As `AsyncJob.token`."""
        return self._handle().token(cancel=cancel, ttl=ttl, hide=hide)

    def _handle(self) -> AsyncJob:
        return self._queue._inner().job(self.id)


class BlockingQueue:
    """The methods of `AsyncQueue`, each of which waits for its answer.

    :param make: makes the async queue, once a process.
    """

    def __init__(self, make: Callable[[], AsyncQueue]) -> None:
        self._make = make
        self._queues: dict[int, AsyncQueue] = {}  # by process id; a fork's parent's are never touched by the child
        self._making = threading.Lock()
        self._inner()  # wrong settings are told here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The queue opens new ones when it is used again."""
        queue = self._queues.pop(os.getpid(), None)
        if queue is not None:
            _portal().close(queue)

    def enqueue(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> Job:
        """As `AsyncQueue.enqueue`."""
        return self.job(self.submit(spec, **fields).id)

    def submit(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> Enqueued:
        """As `AsyncQueue.submit`."""
        return _portal().run(self._inner().submit(spec, **fields))

    def job(self, job_id: str) -> Job:
        """A handle on a job by its id.

        :raises ValidationError: not a job id.
        """
        return Job(self, job_id)

    def token(
        self,
        job: Job | str | Collection[Job | str] | None = None,
        *,
        channels: Collection[str] = (),
        subject: str | None = None,
        cancel: bool = False,
        ttl: float | None = None,
        hide: Collection[Hidden] = (),
    ) -> str:
        """As `AsyncQueue.token`."""
        return self._inner().token(job_ids(job), channels=channels, subject=subject, cancel=cancel, ttl=ttl, hide=hide)

    def jobs(self, *, state: str | None = None, limit: int = 50, cursor: str | None = None) -> JobPage:
        """As `AsyncQueue.jobs`."""
        return _portal().run(self._inner().jobs(state=state, limit=limit, cursor=cursor))

    def _inner(self) -> AsyncQueue:
        pid = os.getpid()
        queue = self._queues.get(pid)
        if queue is None:
            with self._making:
                queue = self._queues.get(pid) or _portal().own(self._make)
                self._queues[pid] = queue
        return queue
