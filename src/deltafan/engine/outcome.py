"""How an attempt ended, and what is to become of its job: values and decisions, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from deltafan.errors import CompletionError
from deltafan.events import FinishReason, Usage
from deltafan.settings import WorkerSettings

MAX_RETRY_AFTER = 86_400.0
"""Seconds that a provider may have a job wait: a day, the longest period of a rate limit. Some send nonsense."""
StopReason = Literal["cancelled", "abandoned", "fenced", "gone", "lost_tail", "drain", "refused"]


@dataclass(frozen=True, slots=True)
class Completed:
    """The provider said all there was."""

    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. `usage` is what is known of what it used."""

    error: CompletionError
    usage: Usage


@dataclass(frozen=True, slots=True)
class Stopped:
    """Somebody stopped the attempt."""

    reason: StopReason
    usage: Usage


Outcome = Completed | Failed | Stopped


def retry_wait(settings: WorkerSettings, failures: int, retry_after: float | None) -> float:
    """Seconds until the next attempt: exponential with full jitter, and not sooner than the provider asked.

    After AWS's "Exponential Backoff And Jitter": uniform from 0 to the bound. The bound is twice the mean wait.
    """
    bound = min(settings.backoff_max, 2 * settings.backoff * 2 ** max(0, failures - 1))
    return max(random.uniform(0, bound), min(retry_after or 0.0, MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
