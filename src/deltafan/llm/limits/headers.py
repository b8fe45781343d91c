"""What the headers of an answer tell about a provider's limits. Pure functions.

    OpenAI, Azure, Groq, OpenRouter's upstreams, …   x-ratelimit-{limit,remaining,reset}-{requests,tokens}
    Cerebras                                         the same with -minute; those with -day or -hour are not read
    Anthropic                                        anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}

A reset is a duration ("6m0s", "20ms"), seconds, or a time (RFC 3339, or Unix time): when all of the budget is there
again. Groq's `-requests` are of the day, which as a bound of a minute is merely loose. Whatever makes no sense is as
if it had not been said.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from deltafan.llm.failures import retry_after
from deltafan.llm.limits.budget import MAX_COUNT

PAUSING_STATUSES: Final = frozenset({429, 503, 529})
"""Statuses whose Retry-After is about all requests to that model. Anthropic is overloaded with 529."""
MAX_PAUSE: Final = 3600.0
"""Seconds. A provider that wants a longer pause is asked again after an hour."""

_NAMES: Final = (
    "x-ratelimit-{what}-{of}",
    "x-ratelimit-{what}-{of}-minute",
    "anthropic-ratelimit-{of}-{what}",
)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS: Final = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_UNIX_TIME: Final = 1e9  # no duration in seconds is that long
_UNIX_MILLISECONDS: Final = 1e12


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit, as a provider tells it. `None` is not told."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    """Seconds until all of it is there again."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one answer tells."""

    tokens: Allowance = Allowance()
    requests: Allowance = Allowance()
    pause: float = 0.0
    """Seconds for which the provider wants no request."""

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING: Final = Observation()


def learn(headers: Mapping[str, str], status: int = 200, *, clock: Callable[[], float] = time.time) -> Observation:
    """What an answer's headers tell.

    :param headers: names in lower case, or a mapping that does not care.
    :param status: of the answer. A Retry-After counts with 429, 503 and 529 only.
    :param clock: Unix time in seconds, for a reset that is a time.
    """
    pause = retry_after(headers) if status in PAUSING_STATUSES else None
    return Observation(
        tokens=_allowance(headers, "tokens", clock),
        requests=_allowance(headers, "requests", clock),
        pause=min(pause or 0.0, MAX_PAUSE),
    )


def paused(status: int | None, seconds: float | None) -> Observation:
    """What a failed answer tells by its status and the Retry-After that was read from it already."""
    if status not in PAUSING_STATUSES or not seconds:
        return _NOTHING
    return Observation(pause=min(seconds, MAX_PAUSE))


def parse_reset(value: str, now: float) -> float | None:
    """Seconds until a reset: `"6m0s"`, `"20ms"`, `"1.5"`, RFC 3339 or Unix time. `None`: it is none of these.

    :param now: Unix time in seconds.
    """
    value = value.strip()
    try:
        number = float(value)
    except ValueError:
        return _duration(value) if value[-1:] == "s" or value[-1:] in "dhm" else _until(value, now)
    if number >= _UNIX_TIME:
        number = (number / 1000 if number >= _UNIX_MILLISECONDS else number) - now
    return max(0.0, number) if math.isfinite(number) else None


def _allowance(headers: Mapping[str, str], of: str, clock: Callable[[], float]) -> Allowance:
    def told(what: str) -> str:
        found = (headers.get(name.format(what=what, of=of)) for name in _NAMES)
        return next((value for value in found if value), "")

    # Some servers say 0 or -1 where there is no limit.
    return Allowance(_count(told("limit"), 1), _count(told("remaining"), 0), parse_reset(told("reset"), clock()))


def _count(value: str, least: int) -> int | None:
    value = value.strip()
    if not (value.isascii() and value.isdigit()) or len(value) > 16:
        return None
    number = int(value)
    return number if least <= number <= MAX_COUNT else None


def _duration(value: str) -> float | None:
    match = _DURATION.fullmatch(value)
    if match is None or not value:
        return None
    return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS, strict=True) if number)


def _until(value: str, now: float) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
