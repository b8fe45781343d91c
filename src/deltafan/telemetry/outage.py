"""Outages of Redis as an operator wants to read of them: one line at the loss, one at the return."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry.hooks import Hook, Signal

UNAVAILABLE: Final = "redis.unavailable"
REFUSED: Final = "redis.refused"
AVAILABLE: Final = "redis.available"
FORGOTTEN: Final = 60.0
"""Seconds after which an activity that was not tried again holds up no line: a request that nobody repeats, say."""
_ERROR_CHARS: Final = 300


class Outage:
    """Shared by all that talk to Redis in a process.

    Each activity (the heartbeat, appends, a job's claim) says when it failed and when it went through. The first to
    fail tells of the loss; the return is told when none is left that failed. So a Redis that answers one and refuses
    another (out of memory, it still reads) is not told of in turns, and however long it lasts, it is not told twice.

    :param fields: of every signal, such as the worker's name.
    """

    def __init__(self, hook: Hook, fields: Mapping[str, Any] | None = None) -> None:
        self._hook = hook
        self._fields = dict(fields or {})
        self._failing: OrderedDict[str, tuple[str, float]] = OrderedDict()  # activity: what it met, when; latest last
        self._jobs: set[str] = set()
        self._since = 0.0

    def failed(self, activity: str, error: BaseException, jobs: Iterable[str] = ()) -> None:
        """An activity failed, and will be tried again. :param jobs: that wait for it."""
        now = time.monotonic()
        self._forget(now)
        if not self._failing:
            self._since = now
            self._jobs.clear()
        self._jobs.update(jobs)
        kind = _kind(activity, error)
        known = any(met == kind for met, _ in self._failing.values())
        self._failing[activity] = (kind, now)
        self._failing.move_to_end(activity)
        if known:
            return
        text = {"error": str(error)[:_ERROR_CHARS] or type(error).__name__}
        if isinstance(error, BrokerUnavailable):
            self._hook(Signal(UNAVAILABLE, "warning", self._fields | text))
        else:
            self._hook(Signal(REFUSED, "error", self._fields | {"activity": activity} | text))

    def went_well(self, activity: str) -> None:
        """An activity went through, or is not wanted any more."""
        if not self._failing:
            return
        now = time.monotonic()
        self._failing.pop(activity, None)
        self._forget(now)
        if self._failing:
            return
        told = {"seconds": round(now - self._since, 1), "jobs": len(self._jobs)}
        self._jobs.clear()
        self._hook(Signal(AVAILABLE, "info", self._fields | told))

    def _forget(self, now: float) -> None:
        while self._failing and now - next(iter(self._failing.values()))[1] >= FORGOTTEN:
            self._failing.popitem(last=False)


def _kind(activity: str, error: BaseException) -> str:
    """What is worth a line of its own: Redis is gone for all alike, and so is a right that was taken from us; but a key
    that is in the way of one is not in that of others.
    """
    if isinstance(error, BrokerUnavailable):
        return str(error).partition(":")[0]
    if isinstance(error, ConfigurationError):
        return str(error)[:_ERROR_CHARS]
    return f"{activity} {str(error)[:_ERROR_CHARS]}"
