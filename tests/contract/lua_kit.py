"""What the tests of the Lua scripts share: workers without an engine, and a look at every key of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from deltafan.broker import enqueue as build
from deltafan.broker import upkeep
from deltafan.broker.cancel import CancelOutcome, cancel_job
from deltafan.broker.claims import Claim, Claims, Ended
from deltafan.broker.connections import Connections
from deltafan.broker.intake import Intake, Taken
from deltafan.broker.keys import GROUP, Partition
from deltafan.broker.scripts import APPEND, Script
from deltafan.events import Done, Error, Event, EventId, TextDelta, Usage
from deltafan.job import JobState, parse_spec
from deltafan.settings import JobLimits, RedisSettings, Retention, WorkerSettings
from deltafan.wire import decode, encode

RETENTION = Retention(retention=100, idle_retention=1000)
LEASE = 30.0
USAGE = Usage(1, 2, 3, source="reported")
K = Partition(0)


@dataclass
class Work:
    """A claimed job; the test says what its model says."""

    lab: Lab
    worker: Worker
    claim: Claim
    seq: int = 1
    text: str = ""

    @property
    def id(self) -> str:
        return self.claim.job_id

    def encoded(self, first: int, *events: Event) -> list[bytes]:
        return [encode(self.id, EventId(self.claim.attempt, first + n), event) for n, event in enumerate(events)]

    async def append(
        self, *texts: str, first: int | None = None, worker: str | None = None, attempt: int | None = None,
        chars: int = 0, visible: int = 1, idle_ms: int | str = "", channel: str = "",
    ) -> list[Any]:  # fmt: skip
        """The raw answer of `append.lua`."""
        first = self.seq if first is None else first
        data = self.encoded(first, *map(TextDelta, texts))
        answer: list[Any] = await APPEND.run(
            self.lab.redis,
            [K.job(self.id), K.log(self.id), K.live(self.id)],
            [attempt or self.claim.attempt, worker or self.worker.name, first, chars, visible, idle_ms, channel, *data],
        )
        return [answer[0].decode(), *answer[1:]]

    async def say(self, text: str) -> None:
        self.text += text
        answer = await self.append(text, chars=len(self.text))
        assert answer[:2] == ["appended", self.seq]
        self.seq += 1

    async def finish(
        self, state: JobState = "done", *, first: int | None = None, acknowledge: bool = True, dead: str = "",
        error: bytes = b"",
    ) -> tuple[str, int]:  # fmt: skip
        reason: Any = {"done": "stop", "failed": "error"}.get(state, state)
        first = self.seq if first is None else first
        events = self.encoded(first, USAGE, Done(reason, text_length=len(self.text)))
        record: dict[str, Any] = {"finish_reason": reason, "chars": len(self.text)}
        return await self.worker.claims.finish(
            self.claim, first, events, state, record, acknowledge=acknowledge, dead=dead, error=error
        )

    async def retry(self, wait: float = 60.0, *, first: int | None = None) -> tuple[str, int]:
        first = self.seq if first is None else first
        events = self.encoded(first, USAGE, Error(code="connection", retryable=True, will_retry=True))
        error = orjson.dumps({"attempt": self.claim.attempt, "code": "connection"})
        return await self.worker.claims.retry(self.claim, first, events, wait, error, {"chars": len(self.text)})

    async def release(self) -> str:
        return await self.worker.claims.release(self.claim, b'{"source":"estimated"}')


class Worker:
    """A worker's hands: it takes, claims and lets go when the test says so."""

    def __init__(self, lab: Lab, name: str, settings: WorkerSettings) -> None:
        self.lab = lab
        self.name = name
        self.claims = Claims(lab.redis, name, settings, RETENTION, JobLimits())
        self.intake = Intake(lab.connections, name, ["default"], 1)

    async def live(self) -> None:
        await upkeep.beat(self.lab.redis, 1, self.name, LEASE, {})

    async def die(self) -> None:
        """What is left of a worker whose lease has run out."""
        await upkeep.leave(self.lab.redis, 0, self.name)

    async def take(self, count: int = 1) -> list[Taken]:
        return await self.intake.take(count)

    async def held(self) -> list[Taken]:
        """What it holds unacknowledged."""
        looked = [await self.intake.look(held) for held in await self.intake.pending()]
        return [taken for taken in looked if taken is not None]

    async def claim(self, taken: Taken, *, can_continue: bool = False) -> Claim | Ended | None:
        return await self.claims.claim(taken, "openai", can_continue=can_continue)

    async def begin(self, *, can_continue: bool = False) -> Work:
        """Take and claim the next job."""
        [taken] = await self.take()
        claim = await self.claim(taken, can_continue=can_continue)
        assert isinstance(claim, Claim), claim
        return Work(self.lab, self, claim)


@dataclass
class Lab:
    """One empty server."""

    connections: Connections
    workers: dict[str, Worker] = field(default_factory=dict)

    @property
    def redis(self) -> Redis:
        return self.connections.commands

    async def worker(self, name: str = "w1", **settings: Any) -> Worker:
        worker = self.workers[name] = Worker(self, name, WorkerSettings(**settings))
        await worker.intake.ensure_groups()
        await worker.live()
        return worker

    async def enqueue_raw(
        self, *, job_id: str = "0-a", tenant: str = "default", max_queue: int = 100, adopt: str = "",
        created_ms: int | None = None, **fields: Any,
    ) -> tuple[str, ...]:  # fmt: skip
        """The raw answer of `enqueue.lua`."""
        spec = parse_spec({"model": "m", "prompt": "x"} | fields)
        call = build.build(spec, job_id, tenant=tenant, max_queue=max_queue, adopt=adopt, created_ms=created_ms)
        answer = await call.script.run(self.redis, call.keys, call.args)
        return tuple(part.decode() for part in answer)

    async def enqueue(self, job_id: str = "0-a", **fields: Any) -> str:
        status, *_ = await self.enqueue_raw(job_id=job_id, **fields)
        assert status in ("queued", "delayed")
        return job_id

    async def record(self, job_id: str = "0-a") -> dict[str, str]:
        found = await self.redis.hgetall(K.job(job_id))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def log(self, job_id: str = "0-a") -> list[Event]:
        """Each event, its Redis id and its own id being the same."""
        events = []
        for entry, fields in await self.redis.xrange(K.log(job_id)):
            event = decode(fields[b"e"])
            assert event is not None
            assert str(event.id) == entry.decode()
            events.append(event)
        return events

    async def types(self, job_id: str = "0-a") -> list[str]:
        return [f"{event.id} {event.type}" for event in await self.log(job_id)]

    async def waiting(self, priority: str = "normal") -> list[str]:
        """Ids of the jobs in a stream, read or not."""
        rows = await self.redis.xrange(K.queue("default", priority))
        return [fields.get(b"id", b"?").decode() for _, fields in rows]

    async def pending(self, priority: str = "normal") -> dict[str, str]:
        """Who holds which entry of a stream."""
        rows = await self.redis.xpending_range(K.queue("default", priority), GROUP, "-", "+", 100)
        return {row["message_id"].decode(): row["consumer"].decode() for row in rows}

    async def dead(self) -> list[dict[str, Any]]:
        rows = await self.redis.xrange(K.dead("default"))
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in rows]

    async def ttl(self, key: str) -> float:
        """Seconds to live; -1 for ever, -2 not there."""
        left = await self.redis.pttl(key)
        return left / 1000 if left > 0 else left

    async def now(self) -> int:
        seconds, micros = await self.redis.time()
        return seconds * 1000 + micros // 1000

    async def reap(self, worker: str, taken: Taken, **settings: Any) -> str:
        """The raw answer of `reap.lua` for one entry."""
        call = upkeep._reap_call(K, taken, worker, WorkerSettings(**settings), RETENTION)
        answer: bytes = await call.script.run(self.redis, call.keys, call.args)
        return answer.decode()

    async def cancel(self, job_id: str = "0-a", tenant: str | None = None) -> CancelOutcome:
        return await cancel_job(self.redis, job_id, tenant, RETENTION)

    async def script(self, script: Script, keys: list[str], *args: Any) -> Any:
        return await script.run(self.redis, keys, args)

    @asynccontextmanager
    async def heard(self, *channels: str) -> AsyncIterator[list[bytes]]:
        """What was published on these channels inside the block; read it after the block."""
        messages: list[bytes] = []
        async with self.redis.pubsub() as pubsub:
            await pubsub.subscribe(*channels)
            for _ in channels:
                await pubsub.get_message(timeout=5)
            yield messages
            await self.redis.publish(channels[0], b"that was all")
            async with asyncio.timeout(5):
                while not messages or messages[-1] != b"that was all":
                    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
                    if message is not None:
                        messages.append(message["data"])
            messages.pop()


@asynccontextmanager
async def open_lab(settings: RedisSettings) -> AsyncIterator[Lab]:
    async with Connections(settings) as connections:
        yield Lab(connections)
