"""What settings are called: as variables, as arguments, and when they are misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.limits.settings import LimitSettings
from deltafan.llm.settings import LLMSettings
from deltafan.settings import (
    ClientSettings,
    JobLimits,
    LogSettings,
    RedisSettings,
    RelaySettings,
    Retention,
    Settings,
    TokenSettings,
    WorkerSettings,
)

PREFIX: Final = "DELTAFAN_"
COMPONENTS: Final[tuple[type[Settings], ...]] = (
    RedisSettings,
    JobLimits,
    Retention,
    WorkerSettings,
    RelaySettings,
    TokenSettings,
    LLMSettings,
    CacheSettings,
    LimitSettings,
    ClientSettings,
    LogSettings,
)
TABLES: Final = ("providers", "models")
"""Fields that are more than one value. Providers have variables of their own, and models the user's file."""
_NAMED_OTHERWISE: Final = {"url": "REDIS_URL"}


def option_name(field: str) -> str:
    """The name of a setting as a flag (with dashes) and as an argument of `load`: `url` alone would say too little."""
    return "redis_url" if field == "url" else field


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return _NAMED_OTHERWISE.get(field, PREFIX + field.upper())


def fields_of(component: type[Settings]) -> Iterator[str]:
    """The fields that one variable can hold."""
    return (name for name in component.model_fields if name not in TABLES)


def known_variables() -> list[str]:
    """Every `DELTAFAN_*` variable, and `REDIS_URL`."""
    return [*(variable(field) for component in COMPONENTS for field in fields_of(component)), variable("providers")]


def unknown_names(given: Mapping[str, object], called: Callable[[str], str]) -> Iterator[str]:
    """What is wrong with names that are meant as those of settings."""
    known = [option_name(field) for component in COMPONENTS for field in fields_of(component)]
    for name in given:
        if name not in known:
            yield f"{called(name)}: is not a setting{guess(name, known, called)}"


def guess(name: str, known: Sequence[str], called: Callable[[str], str] = str) -> str:
    """The setting that was meant, most likely. What all names begin with says nothing about that."""
    ends = {other.removeprefix(PREFIX): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), ends, n=1, cutoff=0.5)
    return f"; did you mean {called(ends[near[0]])}?" if near else ""
