"""An event loop in a background thread, one a process: code without a loop drives the async clients on it."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from deltafan.errors import DeltafanError

T = TypeVar("T")
_CLOSE_SECONDS = 2.0
"""How long the end of the process waits for connections to close."""


class Portal:
    """An event loop in a daemon thread, into which other threads hand coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deltafan-portal", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        self._ended = False
        self._closing: set[asyncio.Task[None]] = set()
        self._open: dict[object, Callable[[], Awaitable[None]]] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and give the result; an interrupted wait cancels it.

        :raises DeltafanError: the process is ending, or it is a fork of the one whose portal this is.
        :raises RuntimeError: it was called in the portal's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking client cannot be used in its own thread: use the async one there")
        if not self._serves():
            coroutine.close()
            forked = "a stream that was opened before a fork cannot be used after it: open another"
            ending = "the process is ending, and its connections are closed already"
            raise DeltafanError(ending if self._ended else forked)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The items, one at a time; leaving the loop closes the async generator."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.close(_close(items))

    def close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what closes something. The end of the process has closed it all, and a forked child leaves it to its
        parent: nothing is done then."""
        if not self._serves():
            closing.close()
        elif threading.current_thread() is self._thread:  # the garbage collector runs wherever it likes
            task = self._loop.create_task(closing)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        else:
            self.run(closing)

    def own(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> T:
        """Make something in the loop, and close it there: with `release`, or at the end of the process."""
        made = self.run(_call(make))
        self._open[made] = lambda: close(made)
        return made

    def release(self, made: object) -> None:
        """Close what `own` made. Once is enough, and more is no harm."""
        close = self._open.pop(made, None)
        if close is not None:
            self.close(_await(close))

    def shut_down(self) -> None:
        """For the end of the process."""
        if self._ended or not self._thread.is_alive():
            return
        self._ended = True  # what came now would wait for a loop that stops
        future = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        try:
            future.result(_CLOSE_SECONDS)
        except (TimeoutError, OSError):
            return  # the sockets close with the process
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _serves(self) -> bool:
        return not self._ended and os.getpid() == self._pid

    async def _finish(self) -> None:
        for close in tuple(self._open.values()):
            await close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


async def _call(make: Callable[[], T]) -> T:
    return make()


async def _await(call: Callable[[], Awaitable[None]]) -> None:
    await call()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


async def _close(items: AsyncGenerator[T, None]) -> None:
    await items.aclose()


_lock = threading.Lock()
_portals: dict[int, Portal] = {}
"""By process id. A forked child has its own; its parent's stay referenced, so that nothing of theirs is closed."""


def portal() -> Portal:
    """The portal of this process, made at first use."""
    pid = os.getpid()
    with _lock:
        found = _portals.get(pid)
        if found is None:
            found = _portals[pid] = Portal()
            atexit.register(_shut_down, pid)
        return found


def _shut_down(pid: int) -> None:
    if os.getpid() == pid:
        _portals[pid].shut_down()


def _renew_lock() -> None:
    global _lock  # a fork may have copied it while another thread held it
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
