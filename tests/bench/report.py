"""A row of the table, and how processes are measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    ours: float
    unit: str
    peer: float | None
    how: str

    def cells(self) -> tuple[str, str, str, str, str]:
        peer = "" if self.peer is None else f"{self.peer:.2f} {self.unit}"
        ratio = "" if self.peer is None else f"{self.ours / self.peer:.2f}"
        return self.what, f"{self.ours:.2f} {self.unit}", peer, ratio, self.how


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads so far, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
