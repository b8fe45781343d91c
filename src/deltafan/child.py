"""A process of ours: ends with us however we end, and says on its standard output when it is ready."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Final, Self

import orjson

from deltafan.engine.supervisor import describe
from deltafan.errors import DeltafanError
from deltafan.lifeline import GRACE_SECONDS
from deltafan.wiring import child_environment

_READY_SECONDS: Final = 60.0


class ChildFailed(DeltafanError):
    """A process of ours ended, or did not become ready. It has said why on standard error."""

    code = "child_failed"


class Child:
    """`deltafan <arguments> --json` under `async with`, which ends it in order.

    It runs in a session of its own: Ctrl-C in a terminal is for us, and it ends when we have.

    :param log: where its standard error goes; left out: to ours.
    :param program: what is run instead of `deltafan`, such as an operator's own worker. It gets no `--json`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: IO[bytes] | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        self.name = arguments[0]
        self._command = tuple(program or (sys.executable, "-m", "deltafan", *arguments, "--json"))
        self._environment = environment
        self._log = log
        self._process: Process | None = None
        self._rest: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=self._log,
            env=child_environment(self._environment),
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(GRACE_SECONDS + 1):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        finally:
            if self._rest is not None:
                self._rest.cancel()
                await asyncio.gather(self._rest, return_exceptions=True)

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._running().returncode is None

    def signal(self, number: int) -> None:
        """Send it a signal; one that has ended gets none."""
        with suppress(ProcessLookupError):
            self._running().send_signal(number)

    async def ended(self) -> int:
        """Wait for its end. Gives its exit code, negative for a signal."""
        return await self._running().wait()

    async def ready(self) -> dict[str, Any]:
        """Wait for the line that it prints when it is ready.

        :raises ChildFailed: it ended instead, or is not ready in time.
        """
        process = self._running()
        assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        try:
            async with asyncio.timeout(_READY_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"the {self.name} is not ready after {_READY_SECONDS:g} s") from None
        if not line:
            raise ChildFailed(f"the {self.name} did not start: {describe(await process.wait())}")
        self._rest = asyncio.create_task(process.stdout.read())  # so that it never waits for us to read
        ready: dict[str, Any] = orjson.loads(line)
        return ready

    async def failure(self) -> ChildFailed:
        """Wait for its end, which should not come."""
        return ChildFailed(f"the {self.name} ended: {describe(await self._running().wait())}")

    def _running(self) -> Process:
        if self._process is None:
            raise ChildFailed(f"the {self.name} has not been started")
        return self._process
