"""What a soak did and found, for somebody who has never seen one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deltafan.chaos.schedule import FAULTS

SHOWN = 20
"""Violations that the text shows; `--json` has all."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    subject: str
    """The job's id, the process, or what was looked at."""
    follower: str
    """Who saw it."""
    rule: str
    faults_before: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "follower": self.follower,
            "rule": self.rule,
            "faults_before": list(self.faults_before),
        }


@dataclass(slots=True)
class Report:
    """Counted while the soak runs."""

    seed: int
    minutes: float
    """As asked for."""
    setup: str
    """What ran, in words."""
    command: str
    """What repeats the schedule."""
    seconds: float = 0.0
    interrupted: bool = False
    enqueued: int = 0
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Failed jobs by the code of their error."""
    kinds: Counter[str] = field(default_factory=Counter)
    followers: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults_skipped: int = 0
    """Planned, and not made: the target was down, or under another fault."""
    provider_faults: int = 0
    """Answers that the provider refused or broke off, as their jobs had planned."""
    attempts: int = 0
    takeovers: int = 0
    resets: int = 0
    reconnections: int = 0
    events: int = 0
    requests: int = 0
    overlaps: int = 0
    """Requests that ran beside an earlier one of the same job, explained by a fault."""
    takeover_seconds: list[float] = field(default_factory=list)
    """From a worker's SIGKILL or SIGSTOP to the next attempt's `meta`."""
    unjudged: int = 0
    """Jobs that were under way when the soak was interrupted."""
    violations: list[Violation] = field(default_factory=list)

    @property
    def ended(self) -> int:
        return sum(self.states.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": not self.violations,
            "seed": self.seed,
            "minutes": self.minutes,
            "seconds": round(self.seconds, 1),
            "interrupted": self.interrupted,
            "setup": self.setup,
            "jobs": {
                "enqueued": self.enqueued,
                "states": dict(self.states),
                "failures": dict(self.failures),
                "kinds": dict(self.kinds),
                "unjudged": self.unjudged,
            },
            "attempts": self.attempts,
            "takeovers": self.takeovers,
            "slowest_takeover": round(max(self.takeover_seconds), 2) if self.takeover_seconds else None,
            "followers": dict(self.followers),
            "events": self.events,
            "resets": self.resets,
            "reconnections": self.reconnections,
            "provider": {"requests": self.requests, "faults": self.provider_faults, "overlaps": self.overlaps},
            "faults": [
                {"where": where, "name": name, "number": number}
                for (where, name), number in sorted(self.faults.items())
            ],
            "faults_skipped": self.faults_skipped,
            "violations": [violation.to_dict() for violation in self.violations],
            "again": self.command,
        }

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            f"deltafan chaos: {_duration(self.seconds)}, seed {self.seed}; {self.setup}",
            *self._verdict(),
            "",
            *self._jobs(),
            *self._followers(),
            *self._provider(),
            "",
            *self._faults(),
            *self._violations(),
            "",
            f"The same again: {self.command}",
        ]

    def _verdict(self) -> list[str]:
        stopped = [f"Interrupted: {self.unjudged} jobs were under way, and are not judged."] if self.interrupted else []
        if self.violations:
            number = len(self.violations)
            told = "1 VIOLATION: a promise was" if number == 1 else f"{number} VIOLATIONS: promises were"
            return [*stopped, f"{told} broken; listed below."]
        if not self.ended:
            return [*stopped, "Nothing was judged: no job has come to its end."]
        checked = "each follower of each job was compared with the log, and the log with what the model had said"
        rest = "" if self.interrupted else "; nothing was left behind in Redis or in this process"
        return [*stopped, f"No violations: {checked}{rest}."]

    def _jobs(self) -> list[str]:
        states = ", ".join(f"{number:,} {state}" for state, number in self.states.most_common()) or "none has ended"
        lines = [_row("jobs", f"{self.enqueued:,} enqueued: {states}")]
        if self.failures:
            codes = ", ".join(f"{number} {code}" for code, number in self.failures.most_common())
            lines.append(_row("", f"failed as they may ({codes}): refused by the provider, or out of attempts"))
        lines.append(_row("attempts", f"{self.attempts:,}, {self.takeovers:,} of them lost with their worker"))
        if self.takeover_seconds:
            middle = sorted(self.takeover_seconds)[len(self.takeover_seconds) // 2]
            told = f"{middle:.1f} s after a worker was struck (median), {max(self.takeover_seconds):.1f} s at the most"
            lines.append(_row("taken over", f"{told}: the lease and a reap interval, and as long as Redis was away"))
        return lines

    def _followers(self) -> list[str]:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.followers.most_common())
        number = f"{self.followers.total():,} ({kinds})" if kinds else "none"
        told = f"{self.reconnections:,} times connected again, {self.resets:,} times told to begin anew"
        return [
            _row("followers", number),
            _row("", f"{self.events:,} events delivered; {told}"),
        ]

    def _provider(self) -> list[str]:
        told = f"{self.requests:,} requests, {self.provider_faults:,} of which it refused or broke off"
        lines = [_row("provider", told)]
        if self.overlaps:
            why = "a worker stood still or was cut off, or the provider could not see its client go"
            lines.append(_row("", f"{self.overlaps:,} ran beside an earlier one of the same job: {why}"))
        return lines

    def _faults(self) -> list[str]:
        lines = [_row("faults", f"{sum(self.faults.values()):,}")]
        for (where, name), number in sorted(self.faults.items(), key=lambda item: (item[0][0], -item[1])):
            lines.append(f"  {number:>9,}  {where:<16} {FAULTS[name].words}")
        if self.faults_skipped:
            why = "what they were to strike was down, or under another fault"
            lines.append(f"  {self.faults_skipped:>9,}  {'skipped':<16} {why}")
        return lines

    def _violations(self) -> list[str]:
        if not self.violations:
            return []
        lines = ["", "Violations"]
        for number, violation in enumerate(self.violations[:SHOWN], start=1):
            lines.append(f"{number:>3}. {violation.subject}, {violation.follower}: {violation.rule}")
            lines += [f"       {fault}" for fault in violation.faults_before]
        if (more := len(self.violations) - SHOWN) > 0:
            lines.append(f"     and {more} more: --json has them all")
        return lines


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
