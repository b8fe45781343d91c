"""What the relay's tests share: a relay on loopback, a worker that a test drives by hand, a reader of streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from deltafan.broker.claims import Claim, Claims
from deltafan.broker.connections import Connections
from deltafan.broker.intake import Intake
from deltafan.broker.queue import AsyncQueue
from deltafan.broker.scripts import APPEND
from deltafan.events import Done, Event, EventId, TextDelta
from deltafan.job import JobState
from deltafan.relay.server import serve
from deltafan.settings import (
    JobLimits,
    PusherSettings,
    RedisSettings,
    RelaySettings,
    Retention,
    TokenSettings,
    WorkerSettings,
)
from deltafan.sse import Decoder, ServerSentEvent
from deltafan.wire import encode

SPEC = {"model": "scripted", "prompt": "Hello"}


@dataclass
class Relay:
    url: str
    stop: asyncio.Event
    task: asyncio.Task[None]


@asynccontextmanager
async def running_relay(
    queue: AsyncQueue, *, tokens: TokenSettings | None = None, pusher: PusherSettings | None = None, **settings: Any
) -> AsyncIterator[Relay]:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    options = RelaySettings(**{"port": 0, "relay_drain": 1.0, **settings})
    task = asyncio.create_task(serve(queue, options, tokens, pusher, ready=ready.set_result, stop=stop))
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Relay(ready.result(), stop, task)
    finally:
        stop.set()
        await task


class Work:
    """A claimed job. The test says what its model says."""

    def __init__(self, worker: HandWorker, claim: Claim) -> None:
        self.claim = claim
        self.id = claim.job_id
        self.seq = 1
        self.text = ""
        self._worker = worker

    def encoded(self, *events: Event) -> list[bytes]:
        """The bytes of the next events, whose ids are taken by that."""
        first = self.seq
        self.seq += len(events)
        self.text += "".join(e.text for e in events if isinstance(e, TextDelta))
        return [
            encode(self.id, EventId(self.claim.attempt, first + place), event) for place, event in enumerate(events)
        ]

    async def say(self, *events: Event | str) -> list[bytes]:
        first = self.seq
        data = self.encoded(*(TextDelta(text=e) if isinstance(e, str) else e for e in events))
        keys = self.claim.keys
        answer = await APPEND.run(
            self._worker.connections.appends,
            [keys.job(self.id), keys.log(self.id), keys.live(self.id)],
            [self.claim.attempt, self.claim.worker, first, len(self.text), 1, 60_000, "", *data],
        )
        assert answer[0] == b"appended", answer
        return data

    async def finish(self, state: JobState = "done", reason: str = "stop") -> bytes:
        first = self.seq
        data = self.encoded(Done(finish_reason=reason, text_length=len(self.text), timings={"total": 5.0}))
        record: dict[str, Any] = {"finish_reason": reason, "chars": len(self.text)}
        outcome, _ = await self._worker.claims.finish(self.claim, first, data, state, record, acknowledge=True)
        assert outcome == "finished", outcome
        return data[0]


class HandWorker:
    """Takes jobs as a worker does, by the same scripts."""

    def __init__(self, connections: Connections, name: str) -> None:
        self.connections = connections
        self.claims = Claims(connections.commands, name, WorkerSettings(), Retention(), JobLimits())
        self._intake = Intake(connections, name, ["default"], 1)

    async def take(self) -> Work:
        await self._intake.ensure_groups()
        (taken,) = await self._intake.take(1) or await self._intake.wait(5)
        claim = await self.claims.claim(taken, "scripted", can_continue=True)
        assert isinstance(claim, Claim), claim
        return Work(self, claim)


@asynccontextmanager
async def hand_worker(settings: RedisSettings, name: str = "hand") -> AsyncIterator[HandWorker]:
    async with Connections(settings) as connections:
        yield HandWorker(connections, name)


class Stream:
    """The events of an SSE answer, one after another."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.decoder = Decoder()
        self.raw = b""
        self._events: list[ServerSentEvent] = []

    async def next(self, *, heartbeats: bool = False) -> ServerSentEvent | None:
        """`None` is the end of the answer."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if heartbeats or event.event != "heartbeat":
                    return event
            data = await self.response.content.readany()
            if not data:
                return None
            self.raw += data
            self._events += self.decoder.feed(data)

    async def until(self, event_id: str) -> list[ServerSentEvent]:
        found: list[ServerSentEvent] = []
        while not found or found[-1].id != event_id:
            event = await self.next()
            assert event is not None, f"the stream ended before {event_id}"
            found.append(event)
        return found

    async def rest(self) -> list[ServerSentEvent]:
        found: list[ServerSentEvent] = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def streaming(
    http: aiohttp.ClientSession, url: str, job: str, after: str | None = None, **headers: str
) -> AsyncIterator[Stream]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if after is not None:
        named["Last-Event-ID"] = after
    async with http.get(f"{url}/v1/jobs/{job}/events", headers=named) as response:
        assert response.status == 200, await response.text()
        yield Stream(response)


def text_of(events: list[ServerSentEvent]) -> str:
    return "".join(orjson.loads(e.data).get("text", "") for e in events if e.event == "text_delta")


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what announces itself nowhere, such as a count in Redis."""
    async with asyncio.timeout(10):
        while not await check():
            await asyncio.sleep(0.01)
