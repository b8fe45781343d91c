"""Several worker processes: starts them, restarts one that dies or is stuck, hands signals on, ends with them.

Children are started anew, not forked: a fork of a process with threads and event loops is a gamble. Each has a socket
of ours as its standard input: when it closes, the child hands its jobs over and ends (see `lifeline`).
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from deltafan.engine.supervised import SupervisedChild, start_child
from deltafan.lifeline import BEATS_PER_LEASE, GRACE_SECONDS, stuck_after
from deltafan.telemetry.hooks import Hook, Level, Signal

CANNOT_START: Final = 2
"""The exit code of a child whose settings are wrong: another try would end the same way."""
STEADY_SECONDS: Final = 10.0
"""A child that has run this long has started well: its next restart is quick again."""
START_TRIES: Final = 5
"""Quick deaths in a row of one child, before any has run steadily, after which we give up and say so by ending."""
_BACKOFF_MIN, _BACKOFF_MAX = 0.2, 30.0


class Supervisor:
    """Keeps `count` children of one command running until it is stopped, or until they cannot be started.

    :param environment: of the children.
    :param patience: seconds that children may take to end after they were asked to; then they are killed.
    :param lease: of the workers; a child that has begun to beat and is silent for `stuck_after(lease)` is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        environment: Mapping[str, str],
        patience: float,
        lease: float,
        hook: Hook,
    ) -> None:
        self._command = tuple(command)
        self._count = count
        self._environment = dict(environment)
        self._patience = patience
        self._look = lease / BEATS_PER_LEASE
        self._stuck_after = stuck_after(lease)
        self._hook = hook
        self._children: dict[int, SupervisedChild] = {}
        self._stopping = asyncio.Event()
        self._any_was_steady = False
        self._exit_code = 0

    async def run(self) -> int:
        """Serve until `terminate` was called and every child has ended.

        :return: the exit code: 0, or that of children that could not be started.
        """
        async with asyncio.TaskGroup() as group:
            for place in range(self._count):
                group.create_task(self._keep(place), name=f"deltafan-child-{place}")
        return self._exit_code

    def terminate(self) -> None:
        """Have the children drain; called again, have them hand their jobs over at once."""
        first = not self._stopping.is_set()
        self._stopping.set()
        self._signal("supervisor.draining" if first else "supervisor.hurrying", children=len(self._children))
        for child in self._children.values():
            child.send_signal(signal.SIGTERM)

    def abandon(self) -> None:
        """Our own parent has ended, or let us go: let the children go, who hand their jobs over and end."""
        self._signal("supervisor.let_go", children=len(self._children))
        self._patience = GRACE_SECONDS - 0.5  # before our own end, so that a stuck child is killed by us
        self._stopping.set()
        for child in self._children.values():
            child.let_go()

    async def _keep(self, place: int) -> None:
        quick_deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_child(place)
            lived = time.monotonic() - started
            if self._stopping.is_set():
                return
            if lived >= STEADY_SECONDS:
                self._any_was_steady, quick_deaths = True, 0
            quick_deaths += 1
            if code == CANNOT_START or (quick_deaths >= START_TRIES and not self._any_was_steady):
                self._give_up(code, quick_deaths)
                return
            bound = min(_BACKOFF_MIN * 2 ** (quick_deaths - 1), _BACKOFF_MAX)
            wait = random.uniform(bound / 2, bound)  # noqa: S311 - jitter, not a secret
            self._signal("supervisor.restarting", "warning", child=place, wait=round(wait, 2))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _run_child(self, place: int) -> int:
        child = await start_child(self._command, self._environment)
        self._children[place] = child
        self._signal("supervisor.started", child=place, pid=child.pid)
        if self._stopping.is_set():  # it was on its way up when the others were told
            child.send_signal(signal.SIGTERM)
        try:
            code = await self._wait(place, child)
        finally:
            child.send_signal(signal.SIGKILL)
            child.let_go()
            del self._children[place]
        level: Level = "info" if code == 0 else "warning"
        self._signal("supervisor.child_ended", level, child=place, pid=child.pid, why=describe(code))
        return code

    async def _wait(self, place: int, child: SupervisedChild) -> int:
        """Its end. One that is stuck is killed, and, once we are stopping, one that takes longer than our patience."""
        ended = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        silent = asyncio.create_task(child.silence(self._look, self._stuck_after))
        try:
            await asyncio.wait({ended, stopping, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not silent.done():
                await asyncio.wait({ended, silent}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._kill(place, child, stuck=silent.done())
            return await ended
        finally:
            for task in (ended, stopping, silent):
                task.cancel()

    async def _kill(self, place: int, child: SupervisedChild, *, stuck: bool) -> None:
        if stuck:
            stack = await child.stack()
            silent = round(self._stuck_after, 1)
            self._signal("supervisor.stuck", "error", child=place, pid=child.pid, silent=silent, stack=stack)
        else:
            self._signal("supervisor.overdue", "error", child=place, pid=child.pid, seconds=round(self._patience, 1))
        child.send_signal(signal.SIGKILL)

    def _give_up(self, code: int, tries: int) -> None:
        self._exit_code = code if code == CANNOT_START else 1
        tried = "once" if tries == 1 else f"{tries} times in a row"
        self._signal("supervisor.gave_up", "error", why=describe(code), tried=tried)
        self.terminate()

    def _signal(self, name: str, level: Level = "info", **fields: Any) -> None:
        self._hook(Signal(name, level, fields))


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return "its settings are wrong" if code == CANNOT_START else f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
