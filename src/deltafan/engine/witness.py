"""When a worker may take others' silence for death."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_GAP: Final = 0.6
"""Part of a lease: heartbeats further apart have missed a turn. Three go out in a lease, so that an outage which costs
anybody his lasts two thirds of one."""


class Witness:
    """Knows, by partition, since when this worker's own heartbeats have arrived without a break.

    After an outage of Redis everybody's heartbeat has run out. Whoever was not heard itself cannot tell the dead from
    the living, and gives them a lease to be heard again.
    """

    def __init__(self, lease: float, now: float, numbers: Iterable[int]) -> None:
        """:param now: when the first heartbeat was tried; all times are of one clock, in seconds."""
        self._lease = lease
        self._last = dict.fromkeys(numbers, now)
        self._since = dict.fromkeys(self._last, float("-inf"))

    def beaten(self, now: float, numbers: Iterable[int]) -> None:
        """Heartbeats that went out at this time have arrived in these partitions."""
        for number in numbers:
            if self._missed(number, now):
                self._since[number] = now
            self._last[number] = now

    def forgotten(self, number: int, now: float) -> None:
        """A heartbeat that had arrived is not there any more."""
        self._since[number] = now

    def may_judge(self, number: int, now: float) -> bool:
        return not self._missed(number, now) and now - self._since[number] >= self._lease

    def _missed(self, number: int, now: float) -> bool:
        return now - self._last[number] > _GAP * self._lease
