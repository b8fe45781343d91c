"""Runs a command for as long as its own parent lives: `python -m deltafan.devserver.watchdog [--remove DIR] -- CMD`

Standard input is a pipe that the parent holds open. When it ends, however the parent came to its end, the command gets
SIGTERM, and SIGKILL three seconds later. SIGTERM and SIGINT are handed on. When the command ends, so does the watchdog,
with its exit code (128 + N for signal N). A parent that lets go in order writes something first; if it wrote nothing,
it was killed, and the folder DIR, which it would have removed, is removed here. Standard library only, and no import of
this package, for a quick start.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

GRACE_SECONDS = 3.0
_USAGE = 2
_CANNOT_RUN = 127
_PR_SET_PDEATHSIG = 1
_HOW = "usage: python -m deltafan.devserver.watchdog [--remove DIR] -- CMD ARGS..."


def main(argv: Sequence[str]) -> int:
    folder, words = (argv[1], argv[2:]) if argv[:1] == ["--remove"] and len(argv) > 1 else (None, argv)
    command = list(words[1:]) if words[:1] == ["--"] else []
    if not command:
        print(_HOW, file=sys.stderr)  # noqa: T201 - its only output
        return _USAGE
    wakeups = _signals_as_bytes()
    try:
        child = _start(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - its only output
        return _CANNOT_RUN
    code, orphaned = _watch(child, wakeups)
    if orphaned and folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _signals_as_bytes() -> int:
    """Makes each signal a byte that can be read from the descriptor returned, so that one `select` waits for all."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    hook = _death_of_parent_kills() if sys.platform == "linux" else None
    # This process has one thread, so that code between fork and exec is safe.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=hook)  # noqa: S603 - the caller's command


def _death_of_parent_kills() -> Callable[[], None]:
    """For the child to call: the kernel kills it should this watchdog be killed itself. Linux only."""
    prctl, watchdog = ctypes.CDLL(None).prctl, os.getpid()

    def request() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != watchdog:  # it was killed before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return request


def _watch(child: subprocess.Popen[bytes], wakeups: int) -> tuple[int, bool]:
    """Waits for the child's end, the parent's end and signals.

    :return: the exit code, and whether the parent was killed.
    """
    orderly = orphaned = False
    watched = [wakeups, sys.stdin.fileno()]
    deadline: float | None = None
    while (code := child.poll()) is None:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout)
        if deadline is not None and time.monotonic() >= deadline:
            child.kill()
            deadline = None
        if wakeups in readable:
            for number in os.read(wakeups, 256):
                if number in (signal.SIGTERM, signal.SIGINT):
                    child.send_signal(number)
        if sys.stdin.fileno() in readable:
            if os.read(sys.stdin.fileno(), 4096):
                orderly = True
                continue
            orphaned = not orderly
            watched.remove(sys.stdin.fileno())
            child.terminate()
            deadline = time.monotonic() + GRACE_SECONDS
    return 128 - code if code < 0 else code, orphaned


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
