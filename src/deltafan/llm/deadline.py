"""The three time limits of a completion, with one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deltafan.errors import CompletionError

T = TypeVar("T")
_NEVER = float("inf")


class Deadline:
    """Bounds waiting on a provider: until the first visible delta, between bytes after it, and in all.

    `asyncio.timeout` does not fit: in an async generator it would go off in the consumer's code between two events,
    and one a read is a timer made and cancelled for every chunk. Here a read notes the time; the one timer, when it
    goes off early, is set again for what is left. It goes off only in `wait`, so time that the consumer takes can end
    the whole (`timeout_total`) but is never a stall of the provider.
    """

    def __init__(self, total: float | None, first_token: float | None, stall: float | None) -> None:
        self._limits = {"timeout_total": total, "timeout_first_token": first_token, "timeout_stall": stall}
        self._loop = asyncio.get_running_loop()
        start = self._loop.time()
        self._total_at = _NEVER if total is None else start + total
        self._first_token_at = _NEVER if first_token is None else start + first_token
        self._stall = _NEVER if stall is None else stall
        self._reading_since = start
        self.visible = False
        """A visible delta has come. Set by the reader."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._expired: str | None = None

    async def wait(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` gives.

        :raises CompletionError: `timeout_total`, `timeout_first_token` or `timeout_stall`. `read` has been cancelled.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a completion is streamed inside an asyncio task")
        self._reading_since = self._loop.time()
        if self._next()[0] <= self._reading_since:
            raise self._timeout(self._next()[1])
        self._arm()
        cancelling = task.cancelling()
        self._task = task
        try:
            result = await read()
        except (asyncio.CancelledError, Exception):
            # Ours, unless the task was cancelled from outside as well.
            if self._expired and task.uncancel() <= cancelling:
                raise self._timeout(self._expired) from None
            raise
        finally:
            self._task = None
        if self._expired:
            task.uncancel()
            raise self._timeout(self._expired)
        return result

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> tuple[float, str]:
        """When the next limit is reached, and which."""
        if self.visible:
            step = (self._reading_since + self._stall, "timeout_stall")
        else:
            step = (self._first_token_at, "timeout_first_token")
        return min(step, (self._total_at, "timeout_total"))

    def _arm(self) -> None:
        due = self._next()[0]
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
            self._timer = None
        if due < _NEVER:
            self._timer = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits; the next `wait` looks at the clock
        due, code = self._next()
        if self._loop.time() < due:
            self._arm()
        else:
            self._expired = code
            self._task.cancel()

    def _timeout(self, code: str) -> CompletionError:
        limit = self._limits[code]
        what = {
            "timeout_total": "the request took longer than",
            "timeout_first_token": "the model did not answer within",
            "timeout_stall": "the model's stream stood still for",
        }[code]
        limit = limit and (round(limit, 2) or limit)  # rings took their microseconds off what was asked for
        return CompletionError(code, f"{what} {limit:g} s")
