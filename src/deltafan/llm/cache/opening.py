"""What is opened at first use: a connection pool, a client, a library that takes a second to load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from deltafan.errors import ConfigurationError
from deltafan.llm.cache.protocol import CacheError

T = TypeVar("T")


class Once(Generic[T]):
    """Opens something once, however many ask at the same time. One who stops waiting does not stop the opening, so that
    what takes longer than a call may is there for a later one. A failed opening is tried again by the next to ask."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._opening = opening
        self._task: asyncio.Task[T] | None = None
        self._closed = False

    async def get(self) -> T:
        """The opened thing.

        :raises CacheError: it is closed.
        """
        if self._closed:
            raise CacheError("the cache is closed")
        if self._task is None or (self._task.done() and _failed(self._task)):
            self._task = asyncio.create_task(self._opening())
            self._task.add_done_callback(_failed)  # looked at, also if nobody waits any longer
        return await asyncio.shield(self._task)

    async def close(self) -> T | None:
        """What has to be closed, if it was opened. Nothing is opened any more."""
        self._closed = True
        task, self._task = self._task, None
        if task is None:
            return None
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        return None if _failed(task) else task.result()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


def require(module: str, extra: str, backend: str) -> None:
    """:raises ConfigurationError: the optional dependency is not installed; says which extra brings it."""
    if find_spec(module) is None:
        raise ConfigurationError(
            f"cache_backend: {backend} needs {module}, which is not installed: pip install 'deltafan[{extra}]'"
        )


@contextmanager
def translated(store: str) -> Iterator[None]:
    """The one boundary of a store's own errors: whatever its library raises is a `CacheError`."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CacheError(f"{store}: {reason or type(error).__name__}") from error
