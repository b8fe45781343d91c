"""The rings around a transport, in the one order that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from deltafan.llm.seam import Completions

Ring = Callable[[Completions], Completions]
"""Makes a `Completions` of the one inside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings:
    """What goes around a transport, from the outside in. `None` is left out.

    Tools always run, and what they say is never stored: a cache answers the turns between them, each by itself. The
    tools' schemas are in a turn's parameters, and so in its key. A cached answer costs no try and no budget. Each turn
    may be answered by another model.
    The context check counts once for each model that a router asks, not for each try, and so that the limiter knows
    what a try will take. Every try takes from the budget anew.
    """

    tools: Ring | None = None
    cache: Ring | None = None
    router: Ring | None = None
    context: Ring | None = None
    retry: Ring | None = None
    limiter: Ring | None = None


def compose(transport: Completions, rings: Rings) -> Completions:
    """The transport with its rings."""
    for field in reversed(fields(rings)):
        ring: Ring | None = getattr(rings, field.name)
        if ring is not None:
            transport = ring(transport)
    return transport
