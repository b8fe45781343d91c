"""The jobs of a soak and their followers, as a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deltafan.chaos.rig import TEXT
from deltafan.job import PRIORITIES
from deltafan.wire import dumps

Kind = str
FOLLOWERS: Final = ("sse", "client", "channel")
PATIENT: Final = 12
"""Attempts that most jobs have: in a soak many are lost through no fault of the job."""
_PASSING: Final = ("cut", "close", "error", "malformed")
_REFUSALS: Final = {"bad_request": "bad_request", "context_length": "context_length", "quota": "quota"}
"""Faults of the provider that no attempt can mend, and the code of the job's error."""


@dataclass(frozen=True, slots=True)
class PlannedFollower:
    """Who follows a job."""

    kind: str
    joins: float
    """Seconds after the job was enqueued."""
    stays: tuple[float, ...] = ()
    """Seconds after which it leaves, each time; it comes back with its cursor, and stays the last time."""
    resumes: bool = False
    """It begins with a cursor that another follower had."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job, and what may become of it."""

    at: float
    """Seconds after the start."""
    number: int
    kind: str
    """In words, for the report."""
    text: str
    """What its model says."""
    scripted: Mapping[str, str] = field(default_factory=dict)
    """Options of the scripted provider."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    twice: bool = False
    """Enqueued twice at once, with one idempotency key."""
    cancel_after: float | None = None
    """Seconds."""
    refusal: str = ""
    """Code of the error that the provider answers every attempt with."""
    followers: tuple[PlannedFollower, ...] = ()

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if "tool_calls" in self.scripted else "stop"


def workload(seed: int, rate: float) -> Iterator[PlannedJob]:
    """The jobs of a seed, in order of time, without end.

    :param rate: jobs a second, in the mean.
    """
    dice = random.Random(f"jobs {seed}")  # noqa: S311 - to be repeated, not to be secret
    kinds = list(_KINDS)
    weights = [weight for weight, _ in _KINDS.values()]
    at, number = 0.0, 0
    while True:
        at, number = at + dice.expovariate(rate), number + 1
        kind = dice.choices(kinds, weights)[0]
        fields = _KINDS[kind][1](dice)
        spec = {"max_attempts": PATIENT, "priority": dice.choice(PRIORITIES), **fields.pop("spec", {})}
        followers = tuple(_followers(dice))
        yield PlannedJob(at, number, kind, spec=spec, twice=dice.random() < 0.1, followers=followers, **fields)


def _followers(dice: random.Random) -> Iterator[PlannedFollower]:
    kinds = dice.sample(FOLLOWERS, k=dice.randint(2, 3))
    for place, kind in enumerate(kinds):
        joins = 0.0 if place == 0 else dice.choice((0.0, dice.uniform(0, 3)))
        stays = tuple(dice.uniform(0.05, 1.0) for _ in range(dice.choice((0, 0, 1, 3))))
        yield PlannedFollower(kind, joins, stays)
    if dice.random() < 0.3:
        yield PlannedFollower(dice.choice(("sse", "client")), dice.uniform(0.2, 3), resumes=True)


def _text(dice: random.Random, shortest: int, longest: int) -> str:
    """A text of which no two parts are alike, so that what is lost, doubled or moved shows."""
    return "".join(f"{place} {TEXT}" for place in range(dice.randint(shortest, longest)))


def _paced(dice: random.Random, **more: Any) -> dict[str, Any]:
    return {"text": _text(dice, 2, 8), "scripted": {"rate": f"{dice.uniform(15, 60):.0f}"}, **more}


def _short(dice: random.Random) -> dict[str, Any]:
    return {"text": _text(dice, 1, 1)}


def _long(dice: random.Random) -> dict[str, Any]:
    return {"text": _text(dice, 10, 20), "scripted": {"rate": f"{dice.uniform(30, 60):.0f}"}}


def _flat_out(dice: random.Random) -> dict[str, Any]:
    return {"text": _text(dice, 30, 80)}


def _tool_calls(dice: random.Random) -> dict[str, Any]:
    calls = [{"name": f"look_up_{n}", "arguments": {"query": TEXT, "n": n}} for n in range(dice.randint(1, 3))]
    job = _paced(dice)
    return {**job, "scripted": {**job["scripted"], "tool_calls": dumps(calls).decode()}}


def _reasoning(dice: random.Random) -> dict[str, Any]:
    job = _paced(dice)
    return {**job, "scripted": {**job["scripted"], "reasoning": TEXT * 2, "split": "3"}}


def _delayed(dice: random.Random) -> dict[str, Any]:
    return _paced(dice, spec={"delay": round(dice.uniform(0.1, 3), 2)})


def _going_on(dice: random.Random) -> dict[str, Any]:
    return _paced(dice, spec={"on_takeover": "continue"})


def _giving_up(dice: random.Random) -> dict[str, Any]:
    return _paced(dice, spec={"on_takeover": "fail"})


def _fragile(dice: random.Random) -> dict[str, Any]:
    return _paced(dice, spec={"max_attempts": dice.randint(1, 2)})


def _flaky(dice: random.Random) -> dict[str, Any]:
    fault = dice.choice([*(f"{name}={dice.randint(1, 12)}" for name in _PASSING), "server_error", "rate_limit=0"])
    job = _paced(dice)
    return {**job, "scripted": {**job["scripted"], "fault": f"{fault}*{dice.randint(1, 3)}"}}


def _refused(dice: random.Random) -> dict[str, Any]:
    fault = dice.choice(list(_REFUSALS))
    return {"text": TEXT, "scripted": {"fault": fault}, "refusal": _REFUSALS[fault]}


def _cancelled(dice: random.Random) -> dict[str, Any]:
    return {**_paced(dice), "cancel_after": dice.choice((0.0, dice.uniform(0, 1), dice.uniform(0, 5)))}


def _cancelled_early(dice: random.Random) -> dict[str, Any]:
    return {**_delayed(dice), "cancel_after": dice.uniform(0, 1)}


def _expiring(dice: random.Random) -> dict[str, Any]:
    delay = {"delay": round(dice.uniform(0.2, 1.5), 2)} if dice.random() < 0.7 else {}
    return _paced(dice, spec={"expires_in": round(dice.uniform(0.1, 1.5), 2), **delay})


_KINDS: Final[Mapping[Kind, tuple[float, Callable[[random.Random], dict[str, Any]]]]] = {
    "short": (10, _short),
    "paced": (16, _paced),
    "long": (10, _long),
    "flat out": (6, _flat_out),
    "tool calls": (8, _tool_calls),
    "reasoning": (6, _reasoning),
    "delayed": (8, _delayed),
    "continued on takeover": (10, _going_on),
    "failed on takeover": (3, _giving_up),
    "of one or two attempts": (3, _fragile),
    "with a provider that fails at first": (10, _flaky),
    "with a provider that refuses": (3, _refused),
    "cancelled": (10, _cancelled),
    "cancelled before it starts": (4, _cancelled_early),
    "that expires": (4, _expiring),
}
"""Kind -> how often beside the others, and what it is made of."""
