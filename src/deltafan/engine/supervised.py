"""One child of the supervisor: the process, and the socket on which it beats and says where it hangs."""

from __future__ import annotations

import asyncio
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from deltafan.lifeline import BEAT

NO_STACK: Final = "none: it does not even take signals (stopped, or waiting in the kernel)"
_STACK_SECONDS: Final = 1.0
"""How long a child may take to write where it hangs. It does so in a signal handler, without its event loop."""
_STACK_LOOK: Final = 0.05
_STACK_BYTES: Final = 8 * 1024
"""Of the stacks, the last, for there stands the main thread's."""
_READ_BYTES: Final = 64 * 1024


class SupervisedChild:
    """Made by `start_child`."""

    def __init__(self, process: Process, line: socket.socket) -> None:
        self._process = process
        self._line = line

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Its exit code."""
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended needs it no more."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def let_go(self) -> None:
        """Close our end of its lifeline."""
        self._line.close()

    async def silence(self, look: float, limit: float) -> None:
        """Returns when it has been silent for `limit` seconds; before its first beat it may be.

        What is counted are looks, `look` seconds apart, not the clock: where we and it were frozen together (a paused
        container, a laptop that slept), the first look afterwards is not the last.
        """
        silent: float | None = None
        while silent is None or silent < limit:
            await asyncio.sleep(look)
            if self._read():
                silent = 0.0
            elif silent is not None and self._line.fileno() >= 0:  # one that was let go is not heard, but not stuck
                silent += look

    async def stack(self) -> str:
        """Ask it where it hangs: the stacks of its threads, the main one last, as `faulthandler` writes them."""
        self.send_signal(signal.SIGUSR1)  # as `Lifeline.beat` has it
        got = b""
        for _ in range(int(_STACK_SECONDS / _STACK_LOOK)):
            await asyncio.sleep(_STACK_LOOK)
            more = self._read().replace(BEAT, b"")
            got += more
            if got and not more:
                break
        return got[-_STACK_BYTES:].decode("utf-8", "replace") or NO_STACK

    def _read(self) -> bytes:
        """What has come since the last time."""
        got = b""
        with suppress(OSError):  # nothing is there; it has ended; or we have let it go
            while data := self._line.recv(_READ_BYTES):
                got += data
        return got


async def start_child(command: Sequence[str], environment: Mapping[str, str]) -> SupervisedChild:
    """Start a process whose standard input is a socket of ours."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=theirs.fileno(),
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for us, who hand it on
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return SupervisedChild(process, ours)
