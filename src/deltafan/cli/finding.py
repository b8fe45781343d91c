"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: how it went, what was seen, and how to mend it when something is wrong."""

    check: str
    level: Level
    seen: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        found = {"check": self.check, "level": self.level, "seen": self.seen}
        return found | ({"mend": self.mend} if self.mend else {})
