"""The deployment that a soak breaks: places for workers and relays, started again whenever they end, and the proxies
between everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis

from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.program import Program
from deltafan.chaos.rig import Rig
from deltafan.chaos.schedule import CLIENT_REDIS, CLIENT_RELAY, RELAY_REDIS, WORKER_PROVIDER, WORKER_REDIS
from deltafan.child import ChildFailed
from deltafan.devserver.proxy import Proxy, proxied

LEASE: Final = 2.0
REAP_INTERVAL: Final = 0.5
SETTINGS: Final[dict[str, Any]] = {
    "lease": LEASE,
    "reap_interval": REAP_INTERVAL,
    "stall_timeout": 5,
    "first_token_timeout": 5,
    "concurrency": 64,
}
"""Over those of the rig. A provider's connection that has gone silent is given up after 5 s."""
START_PAUSE: Final = 0.5
"""Seconds between two tries to start a process; while Redis is away it may not start."""
END_SECONDS: Final = 15.0
"""How long a process may take to end after SIGTERM, at the end of a soak: its drain time, and some more."""
TROUBLE: Final = ("Traceback (most recent call last)", "was never retrieved", "was never awaited", '"job.crashed"')
"""What no log may hold, whatever goes wrong."""


@dataclass(eq=False)
class Place:
    """Where a worker or a relay runs."""

    name: str
    program: Program
    front: Proxy | None = None
    """Before a relay: where its clients connect."""
    leaving: bool = False
    """Its end is our doing."""
    read: int = 0
    """Characters of its log that have been looked at."""


@dataclass(eq=False)
class Deployment:
    """Everything that runs."""

    rig: Rig
    wrong: Callable[[str, str], None]
    """Told of a process that did what none may: who, and what."""
    workers: list[Place] = field(default_factory=list)
    relays: list[Place] = field(default_factory=list)
    queue: AsyncQueue = field(init=False)
    """Of the clients, by way of a proxy."""
    redis: Redis | None = None
    """The same, for followers that need no library of ours; `None` on a cluster."""
    client_link: Proxy | None = None

    @property
    def urls(self) -> list[str]:
        """Where the relays' clients connect."""
        return [place.front.url(place.program.url) for place in self.relays if place.front is not None]

    def link(self, where: str, which: int) -> Proxy | None:
        """The proxy between two; `None` where there is none."""
        match where:
            case _ if where == CLIENT_REDIS:
                return self.client_link
            case _ if where == CLIENT_RELAY:
                return self.relays[which].front
            case _ if where == RELAY_REDIS:
                return self.relays[which].program.redis
            case _ if where == WORKER_REDIS:
                return self.workers[which].program.redis
            case _ if where == WORKER_PROVIDER:
                return self.workers[which].program.provider
        raise ValueError(where)

    @property
    def places(self) -> list[Place]:
        return [*self.workers, *self.relays]

    async def again(self, place: Place, pause: float = 0.0) -> None:
        """Start a place's program again when it has ended, as a supervisor does."""
        await place.program.ended()
        self.look_at_log(place)
        await asyncio.sleep(pause)
        while True:
            try:
                place.program = await self.rig.again(place.program)
                break
            except ChildFailed:
                await asyncio.sleep(START_PAUSE)
        if place.front is not None:
            place.front.stand_before(place.program.url)
        place.leaving = False

    def look_at_log(self, place: Place) -> None:
        """Tell of what the log should not hold."""
        text = place.program.logged()
        new, place.read = text[place.read :], len(text)
        for line in new.splitlines():
            if any(trouble in line for trouble in TROUBLE):
                self.wrong(place.name, f"logged {line[:2000]}")

    async def watch(self, place: Place) -> None:
        """Tell of an end that is none of our doing, and mend it."""
        while True:
            program = place.program
            code = await program.ended()
            if place.leaving or program is not place.program:
                await asyncio.sleep(START_PAUSE)
                continue
            self.wrong(place.name, f"ended by itself with {code}: {program.logged()[-2000:]}")
            await self.again(place)

    async def end(self) -> None:
        """End every process in order, and tell of those that do not end so."""
        for place in self.places:
            place.leaving = True
            place.program.terminate()
        for place in self.places:
            try:
                async with asyncio.timeout(END_SECONDS):
                    code = await place.program.ended()
            except TimeoutError:
                self.wrong(place.name, f"did not end within {END_SECONDS:g} s of SIGTERM")
            else:
                if code != 0:
                    self.wrong(place.name, f"ended with {code} after SIGTERM")
            self.look_at_log(place)


@asynccontextmanager
async def deployed(rig: Rig, workers: int, relays: int, wrong: Callable[[str, str], None]) -> AsyncIterator[Deployment]:
    """Workers, relays and clients of a rig, with a proxy between any two.

    :raises ChildFailed: a process does not start.
    """
    async with AsyncExitStack() as opened:
        deployment = Deployment(rig, wrong)
        for number in range(workers):
            deployment.workers.append(Place(f"worker {number + 1}", await rig.worker(**SETTINGS)))
        for number in range(relays):
            program = await rig.relay()
            front = await opened.enter_async_context(proxied(program.url))
            deployment.relays.append(Place(f"relay {number + 1}", program, front))
        settings = rig.settings
        if rig.redis is not None:
            link = deployment.client_link = await opened.enter_async_context(proxied(settings.url))
            settings = settings.model_copy(update={"url": link.url(settings.url)})
            client: Any = Redis.from_url(settings.url, socket_timeout=2.0)
            deployment.redis = await opened.enter_async_context(client)
        deployment.queue = await opened.enter_async_context(AsyncQueue(settings))
        yield deployment
