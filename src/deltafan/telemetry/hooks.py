"""Telemetry: every component tells what happened by one call, with a frozen detail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Signal:
    """Something that an operator may want to know."""

    name: str
    """What happened, as `job.finished`: who, then what, in the past tense."""
    level: Level = "info"
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Ids, counts and durations (seconds). Never prompts, outputs or keys."""


Hook = Callable[[Signal], None]
"""Called in the event loop; it must not block, and must not raise."""


def silent(signal: Signal) -> None:
    """The hook of a library user who asked for none."""
