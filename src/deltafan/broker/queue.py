"""The producer's side: enqueue a prompt, follow it, ask for its result, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from deltafan import sse
from deltafan.broker import enqueue as build
from deltafan.broker.cancel import CancelOutcome, cancel_job
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.follow import CURSOR_AHEAD, follow, gone_frame, reset_frame
from deltafan.broker.hub import Hub
from deltafan.broker.interest import renew
from deltafan.broker.keys import partition
from deltafan.broker.listing import JobPage, list_jobs
from deltafan.broker.log import Entry
from deltafan.broker.status import JobStatus, read_status
from deltafan.errors import ConfigurationError, ConflictError, FieldError, JobFailed, JobNotFound, ValidationError
from deltafan.events import Event, EventId, Usage
from deltafan.job import JobSpec, parse_spec
from deltafan.settings import JobLimits, RedisSettings, Retention, TokenSettings
from deltafan.tokens import TENANT_MAX, Hidden, TokenKeys
from deltafan.transcript import ToolCall, Transcript
from deltafan.wire import parse_event_id

SSE_HEARTBEAT = 15.0
"""Seconds: the WHATWG's advice for event streams behind proxies."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job said: the output of its final attempt."""

    job_id: str
    text: str
    reasoning: str
    refusal: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage | None
    attempt: int


class AsyncJob:
    """A handle on a job, by its id. Making one asks Redis nothing."""

    def __init__(self, queue: AsyncQueue, job_id: str) -> None:
        self._queue = queue
        self.id = job_id
        self.channel = partition(job_id).live(job_id)
        """The Redis pub/sub channel on which the job's events are published."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def events(self, after: str | EventId | None = None) -> AsyncGenerator[Event, None]:
        """Iterate the job's events, all or those after an id, live until `done`. Outages of Redis are waited out.

        An id that the job's log does not reach is void: all come.

        :raises ValidationError: at once, when `after` is no event id.
        :raises JobNotFound: no such job; with the code `job_gone`, Redis has lost it while it was followed.
        :raises LogExpired: the job's events are no longer kept.
        """
        return self._events(_cursor(after))

    def sse(
        self, after: str | EventId | None = None, *, heartbeat: float = SSE_HEARTBEAT
    ) -> AsyncGenerator[bytes, None]:
        """As `events`, as the body of a `text/event-stream` answer, for an app that serves its followers itself.

        Hand it the request's `Last-Event-ID` header as `after`. The frames are those of the relay. Where Redis loses
        the job in mid-stream, the last one is an `error` of the code `job_gone`.

        :param heartbeat: seconds of silence after which a comment keeps proxies from closing the connection.
        """
        return self._frames(_cursor(after), heartbeat)

    async def _events(self, cursor: EventId | None) -> AsyncGenerator[Event, None]:
        async with aclosing(await self._entries(cursor)) as entries:
            async for entry in entries:
                event = entry.event()
                if event is not None:
                    yield event

    async def _frames(self, cursor: EventId | None, heartbeat: float) -> AsyncGenerator[bytes, None]:
        async with aclosing(await self._entries(cursor)) as entries:
            coming: asyncio.Task[Entry] | None = None
            begun = False
            try:
                while True:
                    coming = coming or asyncio.create_task(_next(entries))
                    await asyncio.wait({coming}, timeout=heartbeat)
                    if not coming.done():
                        yield sse.comment()
                        begun = True
                        continue
                    try:
                        entry = coming.result()
                    except StopAsyncIteration:
                        return
                    except JobNotFound:
                        if not begun:
                            raise
                        yield gone_frame(self.id)
                        return
                    coming = None
                    if cursor is not None and entry.id <= cursor:
                        yield reset_frame(self.id, CURSOR_AHEAD)
                    cursor = None
                    begun = True
                    yield sse.encode(entry.data, event=entry.type, id=str(entry.id))
            finally:
                if coming is not None:
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)

    async def _entries(self, cursor: EventId | None) -> AsyncGenerator[Entry, None]:
        return follow(await self._queue.hub(), self.id, cursor, tenant=self._queue.tenant)

    async def result(self, timeout: float | None = None) -> JobResult:
        """Wait for the end and give the output.

        :param timeout: seconds to wait.
        :raises TimeoutError: the job has not ended by then; it goes on.
        :raises JobFailed: it failed, was cancelled or expired.
        """
        transcript = Transcript()
        async with asyncio.timeout(timeout):
            events = self.events()
            try:
                async for event in events:
                    transcript.add(event)
            finally:
                await events.aclose()
            status = await self.status()
        if status.state != "done":
            error = status.error or {}
            raise JobFailed(self.id, status.state, error.get("code", status.state), error.get("message", ""))
        return JobResult(
            job_id=self.id,
            text=transcript.text,
            reasoning=transcript.reasoning,
            refusal=transcript.refusal,
            tool_calls=tuple(transcript.tool_calls),
            finish_reason=status.finish_reason or "stop",
            usage=Usage(**{k: v for k, v in status.usage.items() if k in Usage.__slots__}) if status.usage else None,
            attempt=status.attempt,
        )

    async def status(self) -> JobStatus:
        """:raises JobNotFound: no such job, or its record has expired."""
        return await read_status(self._queue.connections.commands, self.id, self._queue.tenant)

    async def cancel(self) -> CancelOutcome:
        """Ask for the job's end; sticky once it has returned. A job that has ended stays as it is.

        :raises JobNotFound: no such job.
        """
        return await cancel_job(self._queue.connections.commands, self.id, self._queue.tenant, self._queue.retention)

    async def renew_interest(self) -> float | None:
        """Count as a follower for 90 s, for a job with `cancel_if_abandoned`. For listeners whom Redis does not see,
        such as those at Pusher; `events` and `sse` need none of this.

        :return: in how many seconds to renew it; `None`: there is no need, the job has ended or does not mind.
        :raises JobNotFound: no such job.
        """
        return await renew(self._queue.connections.commands, await self.status())

    def token(self, *, cancel: bool = False, ttl: float | None = None, hide: Collection[Hidden] = ()) -> str:
        """A stream token for this job alone. See `AsyncQueue.token`."""
        return self._queue.token(self, cancel=cancel, ttl=ttl, hide=hide)


def _tenant(name: str) -> str:
    """A tenant's name. An empty one must never stand for all of them."""
    if not (isinstance(name, str) and 1 <= len(name) <= TENANT_MAX and name.isprintable()):
        raise ValidationError([FieldError("tenant", f"must be 1 to {TENANT_MAX} printable characters")])
    return name


def job_ids(job: Any) -> list[str]:
    """The ids of a job, of an id, or of several of either."""
    if job is None:
        return []
    several: Collection[Any] = job if isinstance(job, Collection) and not isinstance(job, str) else [job]
    return [getattr(one, "id", one) for one in several]


def _cursor(after: str | EventId | None) -> EventId | None:
    """:raises ValidationError: it is no event id. An `EventId` made by hand may be none either."""
    if after is None:
        return None
    return parse_event_id(str(after) if isinstance(after, str | EventId) else "")


async def _next(entries: AsyncGenerator[Entry, None]) -> Entry:
    return await anext(entries)


class AsyncQueue:
    """Enqueue prompt jobs and follow them. Open it with `async with`, or call `aclose`.

    :param url: Redis; the environment is not read here (`deltafan.connect` does).
    :param tenant: whose jobs these are; nothing crosses tenants.
    :param tokens: the keys that `token` signs with.
    :raises ValidationError: the tenant is no name.
    :raises ConfigurationError: a token key is not right.
    """

    def __init__(
        self,
        url: str | RedisSettings = "redis://127.0.0.1:6379/0",
        *,
        tenant: str = "default",
        limits: JobLimits | None = None,
        retention: Retention | None = None,
        tokens: TokenSettings | None = None,
    ) -> None:
        self._token_keys = TokenKeys.of(tokens or TokenSettings())
        self.settings = RedisSettings(url=url) if isinstance(url, str) else url
        self.tenant = _tenant(tenant)
        self.limits = limits or JobLimits()
        self.retention = retention or Retention()
        self.connections = Connections(self.settings)
        self._parent: AsyncQueue | None = None
        self._hub: Hub | None = None
        self._on_loss: Callable[[], None] | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._hub is not None:
            await self._hub.__aexit__(None, None, None)
            self._hub = None
        await self.connections.aclose()

    def for_tenant(self, tenant: str) -> AsyncQueue:
        """The same queue for another tenant, on the same connections; close the first one only."""
        other = copy(self)
        other.tenant = _tenant(tenant)
        other._parent = self
        return other

    async def hub(self) -> Hub:
        """The followers' shared subscription, made at first use."""
        if self._parent is not None:
            return await self._parent.hub()
        async with self._opening:
            if self._hub is None:
                self._hub = await Hub(self.connections, self._subscription_lost).__aenter__()
            return self._hub

    def on_subscription_loss(self, action: Callable[[], None] | None) -> None:
        """Call this whenever a connection of the followers' shared subscription breaks or cannot be made; `None`: no
        more. It is mended by itself."""
        if self._parent is not None:  # whose the subscription is
            self._parent.on_subscription_loss(action)
        self._on_loss = action

    def _subscription_lost(self) -> None:
        if self._on_loss is not None:
            self._on_loss()

    async def enqueue(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> AsyncJob:
        """Enqueue a job: `enqueue(model="gpt-5", prompt="Hello")`, or a spec with the same fields.

        :raises ValidationError: naming every field that is wrong.
        :raises ConflictError: the idempotency key belongs to another job.
        :raises QueueFull: the queue is at its bound.
        :raises BrokerUnavailable: Redis cannot be reached within the command timeout; nothing says whether the job
            was taken, so give an `idempotency_key` when you mean to try again.
        """
        return self.job((await self.submit(spec, **fields)).id)

    async def submit(self, spec: JobSpec | Mapping[str, Any] | None = None, /, **fields: Any) -> build.Enqueued:
        """As `enqueue`, giving also the state, and whether an idempotency key's first job was found."""
        if not isinstance(spec, JobSpec):
            spec = parse_spec({**(spec or {}), **fields}, self.limits)
        number = build.choose_partition(self.settings.partitions, self.tenant, spec)
        while True:
            call = build.build(spec, build.new_job_id(number), tenant=self.tenant, max_queue=self.limits.max_queue)
            with redis_errors():
                answer = await call.script.run(self.connections.commands, call.keys, call.args)
            enqueued = build.outcome(spec, answer)
            if enqueued is not None:
                return enqueued if enqueued.created else await self._first(enqueued.id)

    async def _first(self, job_id: str) -> build.Enqueued:
        """The job that an idempotency key has made before, as it is now."""
        try:
            return build.Enqueued(job_id, (await self.job(job_id).status()).state, created=False)
        except JobNotFound:
            raise ConflictError(
                f"idempotency_key: its job {job_id} has ended and is no longer kept; use another key to run it again"
            ) from None

    def job(self, job_id: str) -> AsyncJob:
        """A handle on a job by its id.

        :raises ValidationError: not a job id.
        """
        return AsyncJob(self, job_id)

    def token(
        self,
        job: AsyncJob | str | Collection[AsyncJob | str] | None = None,
        *,
        channels: Collection[str] = (),
        subject: str | None = None,
        cancel: bool = False,
        ttl: float | None = None,
        hide: Collection[Hidden] = (),
    ) -> str:
        """Make a stream token, with which a browser may follow jobs of this tenant at the relay. Asks nobody.

        At least one scope is needed; a job that is in any of them may be followed.

        :param job: a job, its id, or several of them.
        :param channels: patterns of channel names, with `*` for any characters: the jobs on such a channel.
        :param subject: the jobs that were enqueued with this `subject`.
        :param cancel: the holder may cancel them, too.
        :param ttl: seconds; `DELTAFAN_TOKEN_TTL` when left out.
        :param hide: `reasoning`, `tool_arguments`, `tool_results`: what the holder does not get to see.
        :raises ValidationError: naming each argument that is wrong.
        :raises ConfigurationError: no token keys are set.
        """
        keys = self.token_keys()
        if keys is None:
            raise ConfigurationError(
                "stream tokens need a key: set DELTAFAN_TOKEN_KEYS=kid=secret, here and at the relay"
            )
        return keys.mint(
            self.tenant,
            jobs=job_ids(job),
            channels=channels,
            subject=subject,
            cancel=cancel,
            ttl=ttl,
            hide=hide,
        )

    def token_keys(self) -> TokenKeys | None:
        """What `token` signs with; `None` when no keys are set."""
        return self._token_keys

    async def jobs(self, *, state: str | None = None, limit: int = 50, cursor: str | None = None) -> JobPage:
        """The tenant's jobs, newest first, a page at a time."""
        return await list_jobs(
            self.connections.commands,
            self.settings.partitions,
            self.tenant,
            state=state,
            limit=limit,
            cursor=cursor,
        )
