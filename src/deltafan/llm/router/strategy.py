"""Which of several deployments is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from deltafan.llm.router.deployment import Member

Strategy = Literal["weighted", "least_busy", "lowest_latency"]
"""How one of several is chosen.

    weighted        at random, each in proportion to its weight
    least_busy      with the fewest requests in flight for its weight
    lowest_latency  with the shortest time to the first token of late; who was never measured goes first
"""


def choose(members: Sequence[Member], strategy: Strategy, now: float) -> Member:
    """One of them; where they are equal, at random by weight."""
    weighty = [member for member in members if member.deployment.weight > 0] or list(members)
    match strategy:
        case "weighted":
            best = weighty
        case "least_busy":
            best = _lowest(weighty, [m.health.in_flight / (m.deployment.weight or 1.0) for m in weighty])
        case "lowest_latency":
            best = _lowest(weighty, [m.health.latency(now) or 0.0 for m in weighty])
    weights = [member.deployment.weight or 1.0 for member in best]
    return random.choices(best, weights)[0]  # noqa: S311 - spreads load, keeps no secret


def _lowest(members: list[Member], values: list[float]) -> list[Member]:
    lowest = min(values)
    return [member for member, value in zip(members, values, strict=True) if value == lowest]
