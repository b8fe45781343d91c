"""When a soak's faults had what effect: what may be excused by them, and what came before a violation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from deltafan.chaos.deployment import LEASE, REAP_INTERVAL
from deltafan.chaos.oracle import Overlap

KEPT: Final = 2000
"""Disturbances that are remembered. A job lives shorter than so many faults last."""
LATE: Final = LEASE + 2 * REAP_INTERVAL + 5.0
"""Seconds after its end in which a disturbance may still have a job run twice: until the worker that was cut off has
heard from Redis, through connections that it must find broken first."""


@dataclass(slots=True)
class Disturbance:
    """A fault, from its beginning to its end (Unix time in seconds)."""

    what: str
    began: float = field(default_factory=time.time)
    ended: float = float("inf")
    lost: bool = False
    """A worker may miss its lease and yet go on: it stands still, or is cut off from Redis."""
    blind: bool = False
    """The provider cannot see that its client has gone."""


class Disturbances:
    """The disturbances of a soak, the last ones."""

    def __init__(self) -> None:
        self._all: deque[Disturbance] = deque(maxlen=KEPT)

    def begin(self, what: str, *, lost: bool = False, blind: bool = False) -> Disturbance:
        disturbance = Disturbance(what, lost=lost, blind=blind)
        self._all.append(disturbance)
        return disturbance

    def end(self, disturbance: Disturbance) -> None:
        disturbance.ended = time.time()

    def doubt(self, began: float, ended: float) -> bool:
        """Whether a worker may have been thought lost between two times, and have gone on."""
        return any((d.lost or d.blind) and d.began <= ended and d.ended + LATE >= began for d in self._all)

    def unexplained(self, overlaps: Sequence[Overlap]) -> list[Overlap]:
        """Requests that ran at the same time, although nobody was cut off."""
        return [overlap for overlap in overlaps if not any(_explains(d, overlap) for d in self._all)]

    def before(self, moment: float, number: int = 3) -> list[str]:
        """The last faults before a time, the latest first, with how long before."""
        earlier = [d for d in reversed(self._all) if d.began <= moment][:number]
        return [f"{moment - d.began:.1f} s before: {d.what}" for d in earlier]


def _explains(disturbance: Disturbance, overlap: Overlap) -> bool:
    earlier, later = overlap.earlier.started, overlap.later.started
    if disturbance.began > later:
        return False
    if disturbance.blind and disturbance.ended + LATE >= earlier:
        return True
    return disturbance.lost and disturbance.ended + LATE >= later
