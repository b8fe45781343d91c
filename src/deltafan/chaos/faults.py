"""Carrying out planned faults on a deployment, each with its healing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from redis.exceptions import RedisError

from deltafan.chaos import servers
from deltafan.chaos.deployment import Deployment, Place
from deltafan.chaos.disturbances import Disturbances
from deltafan.chaos.schedule import REDIS, RELAY, WORKER, WORKER_PROVIDER, WORKER_REDIS, PlannedFault
from deltafan.devserver.proxy import Proxy
from deltafan.errors import BrokerUnavailable

REPLY_PATIENCE: Final = 5.0
"""Seconds to wait for a script whose reply can be lost. An idle worker runs one every half second."""
_SCRIPTS: Final = (b"EVALSHA", b"EVAL")


class Injector:
    """Carries out faults. A target under a fault is left alone by others until that is healed.

    :param struck: told the name of a worker that was lost by a signal, at that moment.
    """

    def __init__(
        self, deployment: Deployment, disturbances: Disturbances, struck: Callable[[str], Awaitable[None]]
    ) -> None:
        self.done: Counter[tuple[str, str]] = Counter()
        """Faults that were carried out, by place and name."""
        self.skipped = 0
        """Faults whose target was under another one, or not there."""
        self._deployment = deployment
        self._server: servers.Server = deployment.rig.backend
        self._disturbances = disturbances
        self._struck = struck
        self._busy: set[tuple[str, int]] = set()

    async def inflict(self, fault: PlannedFault) -> None:
        """Do it, wait as long as it lasts, heal it."""
        target = (fault.where, fault.which)
        if target in self._busy:
            self.skipped += 1
            return
        self._busy.add(target)
        try:
            match fault.where:
                case _ if fault.where == WORKER:
                    await self._signal(fault, self._deployment.workers[fault.which])
                case _ if fault.where == RELAY:
                    await self._signal(fault, self._deployment.relays[fault.which])
                case _ if fault.where == REDIS:
                    await self._redis(fault)
                case _:
                    await self._link(fault, self._deployment.link(fault.where, fault.which))
        except (RedisError, OSError):
            self.skipped += 1  # Redis is away already
        finally:
            self._busy.discard(target)

    @asynccontextmanager
    async def _disturbed(self, fault: PlannedFault, *, lost: bool = False, blind: bool = False) -> AsyncIterator[None]:
        disturbance = self._disturbances.begin(str(fault), lost=lost, blind=blind)
        try:
            yield
            self.done[fault.where, fault.name] += 1
        finally:
            self._disturbances.end(disturbance)

    async def _signal(self, fault: PlannedFault, place: Place) -> None:
        program = place.program
        if not program.alive:
            self.skipped += 1
            return
        if fault.name == "freeze":
            async with self._disturbed(fault, lost=fault.where == WORKER):
                program.freeze()
                try:
                    if fault.where == WORKER:
                        await self._struck(program.worker)
                    await asyncio.sleep(fault.lasts)
                finally:
                    program.thaw()
            return
        async with self._disturbed(fault):
            place.leaving = True
            if fault.name == "kill":
                program.kill()
                if fault.where == WORKER:
                    await self._struck(program.worker)
                await self._deployment.again(place, fault.lasts)
                return
            program.terminate()
            if fault.name == "terminate twice":
                await asyncio.sleep(fault.lasts)
                program.terminate()
            await self._deployment.again(place)

    async def _redis(self, fault: PlannedFault) -> None:
        server = self._server
        disruptive = fault.name in ("crash", "failover", "migrate")
        async with self._disturbed(fault, lost=disruptive):
            match fault.name:
                case "crash":
                    crashed = await servers.crash(server)
                    try:
                        await asyncio.sleep(fault.lasts)
                    finally:
                        if crashed is not None:
                            await crashed.start()
                case "failover":
                    with suppress(BrokerUnavailable):  # the servers did not agree in time
                        await servers.fail_over(server, fault.amount)
                case "migrate":
                    with suppress(BrokerUnavailable):
                        await servers.migrate(server, fault.amount)
                case "kill normal":
                    await servers.kill_clients(server, "normal")
                case "kill pubsub":
                    await servers.kill_clients(server, "pubsub")
                case "kill all":
                    await servers.kill_clients(server, "pubsub", "normal")
                case "script flush":
                    await servers.flush_scripts(server)

    async def _link(self, fault: PlannedFault, proxy: Proxy | None) -> None:
        if proxy is None:
            self.skipped += 1
            return
        lost = fault.where == WORKER_REDIS and fault.name not in ("cut", "lost reply")  # these mend at once
        blind = fault.where == WORKER_PROVIDER and fault.name != "cut"
        async with self._disturbed(fault, lost=lost, blind=blind):
            try:
                await _disturb(fault, proxy)
            finally:
                proxy.heal()


async def _disturb(fault: PlannedFault, proxy: Proxy) -> None:
    match fault.name:
        case "cut":
            proxy.cut()
        case "silence":
            proxy.silence()
        case "swallow":
            proxy.up.swallows = proxy.down.swallows = True
            await asyncio.sleep(fault.lasts)
            proxy.cut()
        case "hold":
            proxy.up.hold()
            proxy.down.hold()
            await asyncio.sleep(fault.lasts)
        case "delay":
            proxy.up.delay = proxy.down.delay = fault.amount / 1000
            await asyncio.sleep(fault.lasts)
        case "go away":
            proxy.go_away()
            await asyncio.sleep(fault.lasts)
        case "cut after":
            proxy.up.cut_after = proxy.down.cut_after = fault.amount
            proxy.cut()
            await asyncio.sleep(fault.lasts)
        case "lost reply":
            proxy.cut_after_request(lambda data: any(script in data for script in _SCRIPTS))
            async with asyncio.timeout(REPLY_PATIENCE):
                await proxy.was_cut.wait()
