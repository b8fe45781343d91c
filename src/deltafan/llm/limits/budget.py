"""What a limit allows, what a request takes of it, and what a store of limits answers. Values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deltafan.errors import FieldError, ValidationError

SLICES: Final = 60
"""Slices of time that a window is counted in. A grant counts until its whole slice has left the window: never too
short, and at most one slice too long, which costs under two percent of the budget."""
MIN_WINDOW: Final = 0.06
"""Seconds: a slice is at least a millisecond."""
MAX_COUNT: Final = 2**40
"""The largest limit, and the most that one request takes. Sums of thousands of them are still exact in Lua."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be granted within any `window` seconds. `None` is no limit.

    :raises ValidationError: a limit is not a whole number from 1 to 2**40, or the window is shorter than 0.06 s.
    """

    requests: int | None = None
    tokens: int | None = None
    window: float = 60.0
    """Seconds. Providers count by the minute."""

    def __post_init__(self) -> None:
        for name, limit in (("requests", self.requests), ("tokens", self.tokens)):
            if limit is not None:
                check_count(name, limit, least=1)
        if not MIN_WINDOW <= self.window < float("inf"):
            raise ValidationError([FieldError("window", f"must be a number of seconds from {MIN_WINDOW} on")])

    @property
    def window_ms(self) -> int:
        return round(self.window * 1000)

    @property
    def slice_ms(self) -> int:
        return -(-self.window_ms // SLICES)


@dataclass(frozen=True, slots=True)
class Amount:
    tokens: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """How full a limit is, for messages. A limit of `None` is none."""

    tokens: int | None
    requests: int | None
    used: Amount
    """What counts in the window that ends now: granted here, or known from the provider."""
    ahead: int = 0
    """Requests that came before and wait too."""


@dataclass(frozen=True, slots=True)
class Granted:
    at: int
    """Milliseconds, by the store's clock."""
    slice: int
    """Where it is counted."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Ask again, with the same ticket."""

    wait: float
    """Seconds until there is budget, if none is given back before."""
    again: float
    """Seconds after which to ask again, so that the place in the queue is kept and what was given back is seen."""
    paused: float
    """Seconds for which the provider wants no request at all."""
    state: State


@dataclass(frozen=True, slots=True)
class TooLarge:
    """More than the whole budget: it can never be granted."""

    state: State


Answer = Granted | Waiting | TooLarge


def lower(configured: int | None, told: int | None) -> int | None:
    """The limit that holds: a provider's lowers a configured one, and never raises it."""
    return min((limit for limit in (configured, told) if limit is not None), default=None)


def check_count(name: str, value: object, *, least: int = 0) -> None:
    """:raises ValidationError: it is no whole number from `least` to `MAX_COUNT`."""
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise ValidationError([FieldError(name, f"must be a whole number from {least} to 2**40")])
