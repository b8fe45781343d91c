"""Faults: the ways in which a provider fails, by name, each with an optional argument.

Written `NAME`, `NAME=ARG`, `NAME*K` or `NAME=ARG*K`; with `*K` only the first K requests for the same prompt fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from deltafan.errors import FieldError, ValidationError

ArgKind = Literal["chunks", "seconds", "status", "bytes"]

_SYNTAX = re.compile(r"(?P<name>[a-z_]+)(=(?P<arg>[0-9]+(\.[0-9]+)?))?(\*(?P<first>[0-9]+))?")
_MAX_CHUNKS = 1_000_000
_MAX_SECONDS = 3600
_MAX_FIRST = 1_000_000


@dataclass(frozen=True, slots=True)
class FaultRule:
    """What a fault does, and the argument that it takes: its kind, its default, and its smallest and largest value."""

    summary: str
    arg: ArgKind | None = None
    default: float | None = None
    minimum: float = 0
    maximum: float = 0

    def usage(self, name: str) -> str:
        return f"{name}[={self.arg.upper()}]" if self.arg else name


def _chunks(summary: str, *, default: int, minimum: int = 0) -> FaultRule:
    return FaultRule(summary, "chunks", default, minimum, _MAX_CHUNKS)


def _seconds(summary: str, *, default: float) -> FaultRule:
    return FaultRule(summary, "seconds", default, 0, _MAX_SECONDS)


FAULTS: Mapping[str, FaultRule] = {
    # instead of an answer
    "rate_limit": _seconds("429 with Retry-After (default 1)", default=1),
    "quota": FaultRule("429 with code insufficient_quota"),
    "server_error": FaultRule("500, or the 5xx status given", "status", 500, 500, 599),
    "authentication": FaultRule("401"),
    "permission": FaultRule("403"),
    "model_not_found": FaultRule("404"),
    "context_length": FaultRule("400 with code context_length_exceeded"),
    "bad_request": FaultRule("400"),
    # in the stream
    "content_filter": _chunks("ends with finish_reason content_filter after N chunks (default 5)", default=5),
    "cut": _chunks("the connection closes after N chunks, without the end of the body (default 5)", default=5),
    "close": _chunks("the body ends after N chunks, with no finish_reason and no [DONE] (default 5)", default=5),
    "stall": _chunks("N chunks, then nothing, for ever (default 0: the headers only)", default=0),
    "malformed": _chunks("chunk N, counted from 1, is broken JSON (default 5)", default=5, minimum=1),
    "error": _chunks("an error object inside the 200 stream after N chunks (default 5)", default=5),
    # in how it is written
    "split": FaultRule("the body in writes of 1, 2, 3, 1, ... bytes, or of N bytes", "bytes", None, 1, 65536),
    "crlf": FaultRule("lines end in CRLF"),
    "no_done": FaultRule("a finish_reason, but no [DONE]"),
    "no_usage": FaultRule("no usage, though it was asked for"),
    "late_usage": FaultRule("a chunk without choices comes before the usage"),
    "slow_headers": _seconds("the headers come after that many seconds (default 5)", default=5),
}

REFUSALS = frozenset(
    {
        "rate_limit",
        "quota",
        "server_error",
        "authentication",
        "permission",
        "model_not_found",
        "context_length",
        "bad_request",
    }
)
"""The faults that answer an error instead of a completion."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. A missing `arg` becomes the fault's default; `first` limits it to the first requests for a prompt.

    :raises ValidationError: an unknown name, or an argument that breaks the fault's rule.
    """

    name: str
    arg: float | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        rule = FAULTS.get(self.name)
        if rule is None:
            raise _invalid(f"unknown fault {self.name!r}; one of {', '.join(FAULTS)}")
        arg = rule.default if self.arg is None else self.arg
        if arg is not None:
            _check_arg(self.name, rule, arg)
            object.__setattr__(self, "arg", float(arg))
        if self.first is not None and not 1 <= self.first <= _MAX_FIRST:
            raise _invalid(f"the number after * must be from 1 to {_MAX_FIRST}")

    def __str__(self) -> str:
        arg = "" if self.arg is None else f"={self.arg:g}"
        return self.name + arg + ("" if self.first is None else f"*{self.first}")


def _check_arg(name: str, rule: FaultRule, arg: float) -> None:
    if rule.arg is None:
        raise _invalid(f"{name} takes no argument")
    whole = rule.arg != "seconds"
    if not rule.minimum <= arg <= rule.maximum or (whole and arg != int(arg)):
        kind = "a whole number" if whole else "a number"
        raise _invalid(f"{name}: {rule.arg} must be {kind} from {rule.minimum:g} to {rule.maximum:g}")


def parse_fault(text: str) -> Fault:
    """Reads `NAME[=ARG][*K]`.

    :raises ValidationError: the text is not of that form, or `Fault` refuses it.
    """
    match = _SYNTAX.fullmatch(text.strip())
    if match is None:
        raise _invalid(f"{text.strip()!r} is not of the form NAME, NAME=NUMBER or NAME=NUMBER*K")
    arg, first = match["arg"], match["first"]
    return Fault(match["name"], None if arg is None else float(arg), None if first is None else int(first))


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Reads a comma separated list; an empty text is no faults."""
    return tuple(parse_fault(part) for part in text.split(",") if part.strip())


def active_faults(faults: Iterable[Fault], nth: int) -> dict[str, Fault]:
    """The faults that the `nth` request (from 1) for a prompt meets, by name. Of two of one name the first counts."""
    active: dict[str, Fault] = {}
    for fault in faults:
        if fault.first is None or nth <= fault.first:
            active.setdefault(fault.name, fault)
    return active


def _invalid(rule: str) -> ValidationError:
    return ValidationError([FieldError("fault", rule)])
