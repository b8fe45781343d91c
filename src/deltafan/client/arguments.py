"""What the arguments of a client must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from deltafan.llm.checks import invalid, is_count, is_number
from deltafan.llm.limits import Limiter
from deltafan.llm.router import Router


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _is_router(value: Any) -> bool:
    return value is None or isinstance(value, Router) or callable(value)


_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "api": (lambda value: value in ("chat", "responses"), "must be chat or responses"),
    "attempts": (is_count, "must be a whole number, 1 or more"),
    "backoff": (lambda value: is_number(value) and value >= 0, "must be a number of seconds, 0 or more"),
    "limiter": (lambda value: value is None or isinstance(value, Limiter), "must be a Limiter"),
    "router": (_is_router, "must be a Router; make one of deployments: Router([...])"),
    "fallbacks": (_is_several, "must be a list of models"),
    "tools": (_is_several, "must be a list of functions and tools"),
    "api_key": (_is_text, "must be text"),
    "base_url": (_is_text, "must be text"),
}


def check_arguments(**given: Any) -> None:
    """:raises ValidationError: names the first that is wrong, and the rule."""
    for name, value in given.items():
        fits, rule = _RULES[name]
        if not fits(value):
            raise invalid(name, rule)
