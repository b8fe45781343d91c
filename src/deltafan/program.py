"""What every program of ours needs of its process: signals, and a lifeline's word brought into the event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it."""


def on_signals(action: Callable[[], None]) -> Callable[[], int]:
    """Call `action` in the running loop at every SIGTERM and Ctrl-C.

    :return: tells the exit code that an orderly end has: 130 when Ctrl-C was among the signals, else 0.
    """
    loop = asyncio.get_running_loop()
    seen: set[signal.Signals] = set()

    def on_signal(number: signal.Signals) -> None:
        seen.add(number)
        action()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return lambda: INTERRUPTED if signal.SIGINT in seen else 0


def in_loop(action: Callable[[], None]) -> Callable[[], None]:
    """`action`, to be called from any thread; an event loop that has ended needs it no more."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(action)

    return call
