"""Faults of the HTTP API: the ways in which it fails, by name.

Written `NAME`, `NAME=NUMBER`, `NAME*K` or `NAME=NUMBER*K`; with `*K` only for the next K requests. Faults of different
names work together; of two of one name the first works until it is used up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deltafan.errors import FieldError, ValidationError

_SYNTAX = re.compile(r"(?P<name>[a-z_]+)(=(?P<arg>-?[0-9]{1,9}(\.[0-9]{1,9})?))?(\*(?P<times>[0-9]{1,9}))?")
_MAX_FAULTS = 100


@dataclass(frozen=True, slots=True)
class FaultRule:
    """What a fault does, and the least and the greatest of its number if it takes one."""

    summary: str
    numbers: tuple[float, float] | None = None
    whole: bool = False

    def usage(self, name: str) -> str:
        return f"{name}=NUMBER" if self.numbers else name


FAULTS: Mapping[str, FaultRule] = {
    "status": FaultRule("refuses with that HTTP status, 400 to 599", (400, 599), whole=True),
    "delay": FaultRule("answers that many seconds late", (0, 3600)),
    "drop": FaultRule("closes the connection without an answer, nothing is published"),
    "lost_reply": FaultRule("publishes, then closes the connection without an answer"),
    "skew": FaultRule("the server's clock is that many seconds ahead", (-1_000_000, 1_000_000)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    :raises ValidationError: an unknown name, or a number that breaks the fault's rule.
    """

    name: str
    number: float | None = None
    times: int | None = None
    """For how many more requests; `None` is for all."""

    def __post_init__(self) -> None:
        rule = FAULTS.get(self.name)
        if rule is None:
            raise _invalid(f"unknown fault {self.name!r}; one of {', '.join(FAULTS)}")
        if rule.numbers is None:
            if self.number is not None:
                raise _invalid(f"{self.name} takes no number")
        else:
            least, greatest = rule.numbers
            number = self.number
            if number is None or not least <= number <= greatest or (rule.whole and number != int(number)):
                kind = "a whole number" if rule.whole else "a number"
                raise _invalid(f"{self.name} needs {kind} from {least:.0f} to {greatest:.0f}")
        if self.times is not None and self.times < 1:
            raise _invalid("the number after * must be 1 or more")

    def __str__(self) -> str:
        number = "" if self.number is None else f"={self.number:.16g}"
        return self.name + number + ("" if self.times is None else f"*{self.times}")


def parse_fault(text: str) -> Fault:
    """Reads `NAME[=NUMBER][*K]`.

    :raises ValidationError: the text is not of that form, or `Fault` refuses it.
    """
    match = _SYNTAX.fullmatch(text.strip())
    if match is None:
        raise _invalid(f"{text.strip()[:200]!r} is not of the form NAME, NAME=NUMBER or NAME=NUMBER*K")
    number, times = match["arg"], match["times"]
    return Fault(match["name"], None if number is None else float(number), None if times is None else int(times))


class Faults:
    """The faults that are to come."""

    def __init__(self, faults: Iterable[str] = ()) -> None:
        self._faults: list[Fault] = []
        self.set(*faults)

    def set(self, *faults: str) -> None:
        """Puts these in the place of what was to come; without any, nothing is.

        :raises ValidationError: as `parse_fault` does; then nothing has changed.
        """
        if len(faults) > _MAX_FAULTS:
            raise _invalid(f"must be at most {_MAX_FAULTS}")
        self._faults = [parse_fault(fault) for fault in faults]

    @property
    def pending(self) -> list[str]:
        """What is to come, as text, with the requests that are left."""
        return [str(fault) for fault in self._faults]

    def take(self) -> dict[str, Fault]:
        """The faults of the next request, by name; it is counted."""
        taken: dict[str, Fault] = {}
        left: list[Fault] = []
        for fault in self._faults:
            if fault.name in taken:
                left.append(fault)
                continue
            taken[fault.name] = fault
            if fault.times is None:
                left.append(fault)
            elif fault.times > 1:
                left.append(replace(fault, times=fault.times - 1))
        self._faults = left
        return taken


def _invalid(rule: str) -> ValidationError:
    return ValidationError([FieldError("fault", rule)])
