"""A worker or a relay as a process of its own, behind proxies of its own, to be signalled and cut off."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltafan.child import Child
from deltafan.devserver.proxy import Proxy


@dataclass(eq=False)
class Program:
    """A running process. Every fault is a real one: a signal, or a network that fails."""

    name: str
    child: Child
    log: Path
    """What it has written to standard error: its log."""
    redis: Proxy | None
    """Between it and Redis; `None` where its Redis is a cluster, or found by sentinels."""
    provider: Proxy | None
    """Between it and the provider; a relay has none."""
    said: dict[str, Any]
    """What it said when it was ready."""
    frozen: bool = False

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def alive(self) -> bool:
        return self.child.alive

    @property
    def url(self) -> str:
        """Of a relay."""
        return str(self.said["url"])

    @property
    def worker(self) -> str:
        """The name under which a worker owns its jobs."""
        return str(self.said["worker"])

    def kill(self) -> None:
        """SIGKILL: no last word."""
        self.child.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: a worker drains; a second one has it hand its jobs over."""
        self.child.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it stands still, and knows nothing of it."""
        self.frozen = True
        self.child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.frozen = False
        self.child.signal(signal.SIGCONT)

    async def ended(self) -> int:
        return await self.child.ended()

    def logged(self) -> str:
        return self.log.read_text(errors="replace")


@asynccontextmanager
async def running(
    name: str,
    arguments: list[str],
    environment: dict[str, str],
    log: Path,
    *,
    redis: Proxy | None = None,
    provider: Proxy | None = None,
    command: list[str] | None = None,
) -> AsyncIterator[Program]:
    """A process from its readiness on; it is ended in order at the end, if it still lives.

    :param command: an own program that is run instead of `deltafan <arguments>`; it prints a line of JSON when ready.
    :raises ChildFailed: it does not start; its log says why.
    """
    with log.open("ab") as file:  # it may have run before
        async with Child(arguments, environment, log=file, program=command) as child:
            program = Program(name, child, log, redis, provider, await child.ready())
            try:
                yield program
            finally:
                if program.frozen:
                    program.thaw()
