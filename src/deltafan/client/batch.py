"""Many calls at once, never more than so many."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, aclosing
from itertools import islice
from typing import Any, TypeVar

from deltafan.errors import CompletionError, ValidationError
from deltafan.llm.checks import invalid, is_count

T = TypeVar("T")
CONCURRENCY = 16


async def run_batch(
    coros: Iterable[Awaitable[T]], concurrency: int = CONCURRENCY, *, progress: bool = False
) -> list[T | Exception]:
    """Run them all and give what each returned or raised, in their order.

    :param coros: coroutines, such as `client.invoke(...)`; from a generator, each is made when its turn comes.
    :param concurrency: how many run at a time.
    :param progress: show a bar on standard error.
    :raises ValidationError: it is no list of coroutines. Of a list nothing has been run then.
    :raises CancelledError: as ever; those that run are cancelled, those that have not begun are closed.
    """
    async with aclosing(iter_batch(coros, concurrency, progress=progress)) as outcomes:
        found = {place: outcome async for place, outcome in outcomes}
    return [found[place] for place in range(len(found))]


async def iter_batch(
    coros: Iterable[Awaitable[T]], concurrency: int = CONCURRENCY, *, progress: bool = False
) -> AsyncGenerator[tuple[int, T | Exception], None]:
    """As `run_batch`, but gives each as it completes: its place, and what it returned or raised.

    Closing the generator cancels what runs.
    """
    _check(coros, concurrency)
    waiting = iter(coros)
    running: dict[asyncio.Future[Any], int] = {}
    begun = 0
    with ExitStack() as stack:
        total = len(coros) if isinstance(coros, Sized) else None
        advance = stack.enter_context(_Bar(total)) if progress else _no_bar
        try:
            while True:
                for coro in islice(waiting, concurrency - len(running)):
                    _check_one(begun, coro)
                    running[asyncio.ensure_future(coro)] = begun
                    begun += 1
                if not running:
                    return
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for future in sorted(ended, key=running.__getitem__):
                    place = running.pop(future)
                    advance()
                    yield place, _outcome(future)
        finally:
            for future in running:
                future.cancel()
            _close_rest(coros, waiting)
            await asyncio.gather(*running, return_exceptions=True)


def _check(coros: Any, concurrency: Any) -> None:
    """:raises ValidationError: an argument is wrong; what was given is closed."""
    if inspect.iscoroutine(coros) or isinstance(coros, str | bytes) or not isinstance(coros, Iterable):
        _close(coros)
        raise invalid("coros", "must be a list of coroutines")
    try:
        if not is_count(concurrency):
            raise invalid("concurrency", "must be a whole number, 1 or more")
        for place, coro in enumerate(coros if isinstance(coros, Sequence) else ()):
            _check_one(place, coro)
    except ValidationError:
        _close_rest(coros, iter(coros))
        raise


def _check_one(place: int, coro: Any) -> None:
    if not inspect.isawaitable(coro):
        raise invalid(f"coros[{place}]", "must be a coroutine, such as client.invoke(...)")


def _outcome(future: asyncio.Future[Any]) -> Any:
    """A call that was cancelled by others than us is one that failed."""
    if future.cancelled():
        return CompletionError("cancelled", "the call was cancelled")
    error = future.exception()
    if error is None:
        return future.result()
    if not isinstance(error, Exception):
        raise error
    return error


def _close_rest(coros: Iterable[Awaitable[T]], waiting: Iterator[Awaitable[T]]) -> None:
    """Those of a list that have not begun. What a generator would make was never made."""
    if not isinstance(coros, Sized):
        return
    for coro in waiting:
        _close(coro)


def _close(coro: Any) -> None:
    if inspect.isawaitable(coro):
        end = getattr(coro, "close", None) or getattr(coro, "cancel", None)
        if end is not None:
            end()


def _no_bar() -> None:
    return


class _Bar:
    """A bar on standard error that shows how many have ended."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return lambda: self._progress.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
