"""Ending with one's parent, however that came to its end; and telling it that one's event loop still turns.

The parent holds the other end of what is the child's standard input: a pipe, or the socket of a supervisor. When it
closes, so does the child: in order, where it has said how, and within seconds in any case.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

GRACE_SECONDS: Final = 4.0
"""How long the child may take to end in order."""
BEATS_PER_LEASE: Final = 3
"""Heartbeats to Redis in a lease: two may get lost before jobs do. Beats to a supervisor, too: both come from the same
event loop.
"""
BEAT: Final = b"\0"
"""One beat. No byte of a stack, which comes on the same way."""
STUCK_MIN: Final = 3.0
"""Seconds of silence that are never too many: a new process takes about as long to start."""
_STDIN: Final = 0
_STDERR: Final = 2
_PR_SET_PDEATHSIG: Final = 1


def stuck_after(lease: float) -> float:
    """Seconds of silence after which a supervisor takes its child for stuck.

    The loop that beats also renews the lease in Redis. A lease and one beat after both have stopped, Redis has given
    the child's jobs up for certain: its end costs none that could have been saved.
    """
    return max(STUCK_MIN, lease + lease / BEATS_PER_LEASE)


class Lifeline:
    """Watches standard input from a thread of its own: also a child that is stuck in a computation ends.

    :param supervised: this is one of several worker processes, whose number is another's to keep; standard input is a
        socket.
    """

    def __init__(self, *, supervised: bool = False) -> None:
        self.supervised = supervised
        self._lock = threading.Lock()
        self._lost = False
        self._on_loss: Callable[[], None] | None = None
        _wake_at_parents_end()
        threading.Thread(target=self._watch, name="deltafan-lifeline", daemon=True).start()

    def on_loss(self, action: Callable[[], None]) -> None:
        """What to do when the parent is gone; called in the lifeline's thread. Until it is given the end is abrupt."""
        with self._lock:
            self._on_loss = action
            if self._lost:
                action()

    def beat(self, lease: float) -> None:
        """From now on the running event loop tells the supervisor that it turns, `BEATS_PER_LEASE` times a lease.

        A child that falls silent is asked where it hangs (SIGUSR1), then killed. Should it hang without a supervisor,
        and in code that lets no other thread run (a regular expression, say), it ends itself after twice that silence.
        """
        line = socket.socket(fileno=os.dup(_STDIN))
        faulthandler.register(signal.SIGUSR1, file=line.fileno(), all_threads=True)
        loop = asyncio.get_running_loop()

        def beat() -> None:
            with suppress(OSError):  # it does not read just now, or is gone, which the thread sees
                line.send(BEAT, socket.MSG_DONTWAIT)
            # From a thread in C: it needs no turn of the interpreter's.
            faulthandler.dump_traceback_later(2 * stuck_after(lease), exit=True, file=_STDERR)
            loop.call_later(lease / BEATS_PER_LEASE, beat)

        beat()

    def _watch(self) -> None:
        with suppress(ConnectionError):  # a parent that was killed with beats unread
            while os.read(_STDIN, 4096):
                continue
        with self._lock:
            self._lost = True
            orderly = self._on_loss is not None
            if self._on_loss is not None:
                self._on_loss()
        if orderly:
            threading.Event().wait(GRACE_SECONDS)
        os._exit(1)


def _wake_at_parents_end() -> None:
    """A process that is stopped (SIGSTOP) would not see that its parent ended: let the kernel wake it. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
