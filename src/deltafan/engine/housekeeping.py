"""What each worker does for all: it looks after the jobs of lost workers, and after those that wait or have expired."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from deltafan.broker import expiry, upkeep
from deltafan.broker.connections import Connections
from deltafan.engine.services import Services
from deltafan.engine.witness import Witness
from deltafan.errors import BrokerUnavailable
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage

PROMOTE_INTERVAL: Final = 0.5
"""The longest time, in seconds, between two looks at delayed jobs: another worker may have added one."""
_PROMOTE_PAUSE: Final = 0.005
"""The shortest."""


class Housekeeping:
    """The looks of one worker, in every partition, at the queues that it serves.

    :param beat: sends this worker's heartbeat.
    """

    def __init__(
        self,
        services: Services,
        connections: Connections,
        worker: str,
        witness: Witness,
        outage: Outage,
        beat: Callable[[], Awaitable[None]],
    ) -> None:
        self._hook = services.hook
        self._settings = services.settings
        self._retention = services.retention
        self._redis = connections.commands
        self._partitions = connections.settings.partitions
        self._worker = worker
        self._witness = witness
        self._outage = outage
        self._beat = beat
        self._promote_soon = [asyncio.Event() for _ in range(self._partitions)]

    async def look_after(self) -> None:
        """Look everywhere, again and again, for ever."""
        await self._in_each(self._look_in)

    async def _in_each(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """In all partitions side by side: of a cluster one node may be away, and keeps nobody from the others."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._partitions):
                group.create_task(work(number))

    async def _look_in(self, number: int) -> None:
        activity = f"upkeep of partition {number}"
        while True:
            await asyncio.sleep(random.uniform(0.8, 1.0) * self._settings.reap_interval)  # noqa: S311 - jitter
            try:
                await self._look_at(number)
            except Exception as error:  # a key of another type, say
                self._outage.failed(activity, error)
            else:
                self._outage.went_well(activity)

    async def _look_at(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        heard = await upkeep.is_heard(self._redis, number, self._worker)
        if not heard:  # Redis came back without its latest writes, say
            self._witness.forgotten(number, now)
            await self._beat()
        may_judge = self._witness.may_judge(number, now)
        for queue in self._settings.queues:
            if may_judge:
                reaped = await upkeep.reap(self._redis, number, queue, self._settings, self._retention)
                if reaped.lost:
                    ended, lost = len(reaped.ended), list(reaped.lost)
                    self._warn("jobs.reaped", queue=queue, moved=reaped.moved, ended=ended, lost=lost)
                for job_id, state in reaped.ended:
                    code = "worker_lost" if state == "failed" else "cancelled"
                    fields = {"worker": self._worker, "job": job_id, "state": state, "code": code}
                    self._hook(Signal("job.ended", "info", fields))
            if gathered := await upkeep.gather(self._redis, number, queue, self._worker):
                self._warn("entries.gathered", queue=queue, entries=gathered)
            await expiry.forget_letters(self._redis, number, queue, self._retention)
        await expiry.expire(self._redis, number, self._retention)
        await expiry.sweep(self._redis, number)

    def promote_soon(self) -> None:
        """A job may have been put among the delayed."""
        for soon in self._promote_soon:
            soon.set()

    async def promote(self) -> None:
        """Queue delayed jobs when their time has come, for ever."""
        await self._in_each(self._promote_in)

    async def _promote_in(self, number: int) -> None:
        soon = self._promote_soon[number]
        while True:
            soon.clear()
            following: float | None = None
            for queue in self._settings.queues:
                activity = f"promoting in {number} {queue}"
                try:
                    due = await upkeep.promote(self._redis, number, queue)
                except Exception as error:
                    self._outage.failed(activity, error)
                    continue
                self._outage.went_well(activity)
                if due is not None:
                    following = due if following is None else min(due, following)
            try:
                # One that is due and still there (0) could not be promoted: it is no reason to hurry.
                async with asyncio.timeout(max(_PROMOTE_PAUSE, min(following or PROMOTE_INTERVAL, PROMOTE_INTERVAL))):
                    await soon.wait()
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """Say that we are gone, and put what we took and did not begin before the waiting jobs of others."""
        await self._in_each(self._leave)

    async def _leave(self, number: int) -> None:
        try:
            await upkeep.leave(self._redis, number, self._worker)
            for queue in self._settings.queues:
                await upkeep.reap(self._redis, number, queue, self._settings, self._retention, only=self._worker)
        except BrokerUnavailable as error:
            self._outage.failed("leaving", error)

    def _warn(self, name: str, **fields: object) -> None:
        self._hook(Signal(name, "warning", {"worker": self._worker} | fields))
