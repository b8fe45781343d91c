"""How a deployment does: failures and cooldown, load, latency. Pure: whoever asks brings the time, in seconds."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from deltafan.errors import CompletionError, ConfigurationError

WINDOW: Final = 60.0
"""Seconds over which failures, requests and tokens are counted."""
MAX_COOLDOWN: Final = 300.0
"""Seconds of the longest cooldown: it doubles with each probe that fails, and a provider may ask for much."""
HALF_LIFE: Final = 60.0
"""Seconds after which a latency counts half: a deployment that was slow is measured again."""
_SMOOTHING: Final = 0.3
"""The weight of the newest latency."""
_KEPT: Final = 1000

_CALLERS: Final = frozenset(
    {"context_length", "content_filter", "bad_request", "timeout_total", "cancelled", "expired"}
)
"""Failures that are the request's, not the deployment's: it has answered."""
_LASTING: Final = frozenset({"authentication", "permission", "quota", "model_not_found"})
"""Failures that every request would meet."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When a deployment is left alone for a while.

    It cools down when, within a minute, it has failed `failures` times and that is at least `ratio` of its requests; at
    once when its key, its money or its model is gone, or when it asks for a pause itself (Retry-After).

    :raises ConfigurationError: one of them is not what it must be.
    """

    failures: int = 3
    ratio: float = 0.5
    cooldown: float = 30.0
    """Seconds. After them one request is the probe: its success ends the cooldown, its failure doubles it."""

    def __post_init__(self) -> None:
        if type(self.failures) is not int or self.failures < 1:
            raise ConfigurationError("failures: must be a whole number of at least 1")
        if not 0 <= self.ratio <= 1:
            raise ConfigurationError("ratio: must be from 0 to 1")
        if not 0 < self.cooldown < math.inf:
            raise ConfigurationError("cooldown: must be a number of seconds above 0")


class Trial(IntEnum):
    """What a request is to a deployment's cooldown."""

    NONE = 0
    """It does not cool down."""
    FORCED = 1
    """Asked while it cools down, because nobody else was left. Its success ends the cooldown; its failure says nothing
    that was not known."""
    PROBE = 2
    """The cooldown is over, and this is to find out whether it may be used again."""


class Health:
    """Each request: `begin`, then one of `succeeded`, `failed` and `left`, with what `begin` gave."""

    __slots__ = (
        "_cooldown",
        "_latency",
        "_measured",
        "_outcomes",
        "_probing",
        "_rules",
        "_spent",
        "_until",
        "in_flight",
    )

    def __init__(self, rules: Rules) -> None:
        self.in_flight = 0
        self._rules = rules
        self._cooldown = rules.cooldown
        self._until: float | None = None  # the end of the cooldown; `None`: it is in use
        self._probing = False
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=_KEPT)
        self._spent: deque[tuple[float, int, int]] = deque()  # time, requests, tokens
        self._latency: float | None = None
        self._measured = 0.0

    def available(self, now: float) -> bool:
        """Whether it may be asked: it does not cool down, and nobody else probes it."""
        return self._until is None or (now >= self._until and not self._probing)

    @property
    def ready_at(self) -> float:
        """When its cooldown ends, or ended."""
        return 0.0 if self._until is None else self._until

    def begin(self, now: float) -> Trial:
        """A request begins. Gives what it is."""
        self.in_flight += 1
        self._spend(now, 1, 0)
        if self._until is None:
            return Trial.NONE
        if now < self._until:
            return Trial.FORCED
        self._probing = True
        return Trial.PROBE

    def first_token(self, now: float, seconds: float) -> None:
        """The first visible delta has come after so long."""
        latency = self.latency(now)
        self._latency = seconds if latency is None else latency + _SMOOTHING * (seconds - latency)
        self._measured = now

    def succeeded(self, now: float, trial: Trial, tokens: int = 0) -> None:
        self.left(trial)
        self._spend(now, 0, tokens)
        self._outcomes.append((now, True))
        if trial is not Trial.NONE:
            self._until, self._cooldown = None, self._rules.cooldown
            self._outcomes.clear()

    def failed(self, now: float, trial: Trial, error: CompletionError) -> None:
        if error.code in _CALLERS:
            self.succeeded(now, trial)
            return
        self.left(trial)
        self._outcomes.append((now, False))
        if trial is Trial.PROBE:
            self._cooldown = min(self._cooldown * 2, MAX_COOLDOWN)
        if error.retry_after:
            self._cool(now + min(error.retry_after, MAX_COOLDOWN))
        if trial is Trial.FORCED:
            return
        if trial is Trial.PROBE or error.code in _LASTING or self._tripped(now):
            self._cool(now + self._cooldown)

    def left(self, trial: Trial) -> None:
        """It was not waited for to the end, which says nothing of it."""
        self.in_flight -= 1
        if trial is Trial.PROBE:
            self._probing = False

    def latency(self, now: float) -> float | None:
        """Seconds to the first token, a moving average that fades with time; `None`: never measured."""
        if self._latency is None:
            return None
        return self._latency * math.exp2(-(now - self._measured) / HALF_LIFE)

    def within(self, now: float, rpm: int | None, tpm: int | None) -> bool:
        """Whether less than these requests and tokens were spent in the last minute."""
        while self._spent and self._spent[0][0] <= now - WINDOW:
            self._spent.popleft()
        requests = rpm is None or sum(spent[1] for spent in self._spent) < rpm
        return requests and (tpm is None or sum(spent[2] for spent in self._spent) < tpm)

    def _spend(self, now: float, requests: int, tokens: int) -> None:
        if self._spent and now - self._spent[-1][0] < 1.0:  # one entry a second, however busy it is
            since, more_requests, more_tokens = self._spent.pop()
            now, requests, tokens = since, requests + more_requests, tokens + more_tokens
        self._spent.append((now, requests, tokens))
        while self._spent[0][0] <= now - WINDOW:
            self._spent.popleft()

    def _tripped(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0][0] <= now - WINDOW:
            self._outcomes.popleft()
        failures = sum(not success for _, success in self._outcomes)
        return failures >= max(self._rules.failures, self._rules.ratio * len(self._outcomes))

    def _cool(self, until: float) -> None:
        self._until = until if self._until is None else max(self._until, until)
