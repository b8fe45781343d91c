"""Outages of Redis as an operator wants to read of them: one line at the loss, one at the return."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from deltafan.errors import BrokerUnavailable
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
        self._failing: dict[str, tuple[str, float]] = {}  # activity: what it met, and when
        self._jobs: set[str] = set()
        self._since = 0.0

    def failed(self, activity: str, error: BaseException, jobs: Iterable[str] = ()) -> None:
        """An activity failed, and will be tried again. :param jobs: that wait for it."""
        now = time.monotonic()
        self._failing = {name: (met, at) for name, (met, at) in self._failing.items() if now - at < FORGOTTEN}
        if not self._failing:
            self._since = now
        self._jobs.update(jobs)
        kind = _kind(activity, error)
        known = any(met == kind for met, _ in self._failing.values())
        self._failing[activity] = (kind, now)
        if known:
            return
        text = {"error": str(error)[:_ERROR_CHARS] or type(error).__name__}
        if isinstance(error, BrokerUnavailable):
            self._hook(Signal(UNAVAILABLE, "warning", self._fields | text))
        else:
            self._hook(Signal(REFUSED, "error", self._fields | {"activity": activity} | text))

    def went_well(self, activity: str) -> None:
        """An activity went through, or is not wanted any more."""
        if self._failing.pop(activity, None) is None or self._failing:
            return
        told = {"seconds": round(time.monotonic() - self._since, 1), "jobs": len(self._jobs)}
        self._jobs.clear()
        self._hook(Signal(AVAILABLE, "info", self._fields | told))


def _kind(activity: str, error: BaseException) -> str:
    """What is worth a line of its own: Redis is gone for all alike, but what it refuses to one, others may do."""
    if isinstance(error, BrokerUnavailable):
        return str(error).partition(":")[0]
    return f"{activity} {str(error)[:_ERROR_CHARS]}"
