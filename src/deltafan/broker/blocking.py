"""The queue for code without an event loop: the async one, driven on one background thread of the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Generator, Mapping
from types import TracebackType
from typing import Any, Self

from deltafan.broker.cancel import CancelOutcome
from deltafan.broker.enqueue import Enqueued
from deltafan.broker.keys import partition
from deltafan.broker.listing import JobPage
from deltafan.broker.queue import AsyncJob, AsyncQueue, JobResult, job_ids
from deltafan.broker.status import JobStatus
from deltafan.events import Event, EventId
from deltafan.job import JobSpec
from deltafan.portal import portal
from deltafan.tokens import Hidden


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
        return portal().iterate(self._handle().events(after))

    def sse(self, after: str | EventId | None = None) -> Generator[bytes, None, None]:
        """As `AsyncJob.sse`: a plain generator, for Django's or Flask's streaming answers."""
        return portal().iterate(self._handle().sse(after))

    def result(self, timeout: float | None = None) -> JobResult:
        """As `AsyncJob.result`."""
        return portal().run(self._handle().result(timeout))

    def status(self) -> JobStatus:
        """As `AsyncJob.status`."""
        return portal().run(self._handle().status())

    def cancel(self) -> CancelOutcome:
        """As `AsyncJob.cancel`."""
        return portal().run(self._handle().cancel())

    def renew_interest(self) -> float | None:
        """As `AsyncJob.renew_interest`."""
        return portal().run(self._handle().renew_interest())

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
            portal().release(queue)

    def enqueue(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> Job:
        """As `AsyncQueue.enqueue`."""
        return self.job(self.submit(spec, **fields).id)

    def submit(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> Enqueued:
        """As `AsyncQueue.submit`."""
        return portal().run(self._inner().submit(spec, **fields))

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
        return portal().run(self._inner().jobs(state=state, limit=limit, cursor=cursor))

    def _inner(self) -> AsyncQueue:
        pid = os.getpid()
        queue = self._queues.get(pid)
        if queue is None:
            with self._making:
                queue = self._queues.get(pid) or portal().own(self._make, AsyncQueue.aclose)
                self._queues[pid] = queue
        return queue
