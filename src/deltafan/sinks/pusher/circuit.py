"""A circuit breaker: after a refusal that concerns every request, none is made for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST: Final = 30.0
"""Seconds that the circuit stays open after the first refusal; each further one doubles it."""
LONGEST: Final = 300.0


class Circuit:
    """Closed: requests are made. Open: they are not. When its time is over one request tries; if it is refused, the
    circuit opens for twice as long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = 0.0
        self._wait = FIRST
        self.reason = ""
        self.final = False
        """What opened it is no matter of time: wrong credentials, not a quota."""

    @property
    def remaining(self) -> float:
        """Seconds until a request may be made; 0 when it may be made now."""
        return max(0.0, self._until - self._clock())

    def open(self, reason: str, *, final: bool) -> float:
        """:return: for how many seconds; 0 when it was open already."""
        if self.remaining > 0:
            return 0.0
        wait, self._wait = self._wait, min(self._wait * 2, LONGEST)
        self._until = self._clock() + wait
        self.reason, self.final = reason, final
        return wait

    def close(self) -> None:
        self._until, self._wait, self.reason = 0.0, FIRST, ""
