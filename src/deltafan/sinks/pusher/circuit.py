"""A circuit breaker: after a failure that concerns every request, none is made for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

AFTER_REFUSAL: Final = 30.0
"""Seconds that the circuit stays open after a refusal; each further one doubles it."""
AFTER_OUTAGE: Final = 1.0
"""The same after a request that has failed as often as it is made."""
LONGEST: Final = 300.0
LONGEST_OUTAGE: Final = 30.0


class Circuit:
    """Closed: requests are made. Open: they are not. When its time is over, one request tries, and the others wait for
    how it ends: it closes the circuit, or opens it for twice as long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: float | None = None
        self._wait = 0.0
        self._probing = False
        self.reason = ""
        self.final = False
        """What opened it is no matter of time: wrong credentials, not a quota."""

    @property
    def remaining(self) -> float:
        """Seconds until a request may be made; 0 when one may be made now."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    def admit(self) -> bool:
        """Whether a request may be made now. Who asks must say how it ended: `close`, `open` or `give_back`."""
        if self._until is None:
            return True
        if self.remaining > 0 or self._probing:
            return False
        self._probing = True
        return True

    def open(self, reason: str, *, outage: bool = False, final: bool = False) -> float:
        """:return: for how many seconds; 0 when it was open already."""
        self._probing = False
        if self.remaining > 0:
            return 0.0
        first, longest = (AFTER_OUTAGE, LONGEST_OUTAGE) if outage else (AFTER_REFUSAL, LONGEST)
        self._wait = min(max(self._wait * 2, first), longest)
        self._until = self._clock() + self._wait
        self.reason, self.final = reason, final
        return self._wait

    def close(self) -> None:
        self._until, self._wait, self._probing, self.reason, self.final = None, 0.0, False, "", False

    def give_back(self) -> None:
        """The request said nothing of the server: another may try."""
        self._probing = False
