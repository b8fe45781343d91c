"""What a soak does and when: its faults, as a pure function of the seed. The jobs are in `workload`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

WORKER, RELAY, REDIS = "worker", "relay", "Redis"
WORKER_REDIS, RELAY_REDIS, CLIENT_REDIS = "worker-Redis", "relay-Redis", "client-Redis"
WORKER_PROVIDER, CLIENT_RELAY = "worker-provider", "client-relay"
LINKS: Final = (WORKER_REDIS, RELAY_REDIS, CLIENT_REDIS, WORKER_PROVIDER, CLIENT_RELAY)
"""Where a proxy of ours stands between two."""

VALKEY, CLUSTER, SENTINEL = "valkey", "cluster", "sentinel"
SERVERS: Final = (VALKEY, CLUSTER, SENTINEL)
"""Kinds of Redis that a soak runs on."""
_PROXIED: Final = (WORKER_REDIS, RELAY_REDIS, CLIENT_REDIS)
"""Links to a single server. Those to a cluster, or to whom the sentinels name, go where the servers say."""

PAUSE: Final = 1.2
"""Mean seconds between faults."""
AT_ONCE: Final = (0.8, 0.15, 0.05)
"""How often one, two or three faults come at the same moment."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """What can go wrong, where, how often beside the others, and for how long (seconds, from and to)."""

    where: tuple[str, ...]
    weight: float
    lasts: tuple[float, float] = (0.0, 0.0)
    amount: tuple[int, int] = (0, 0)
    words: str = ""
    """For the report's reader."""
    on: tuple[str, ...] = SERVERS

    def places(self, server: str) -> tuple[str, ...]:
        """Where it can happen on this kind of Redis."""
        if server not in self.on:
            return ()
        return tuple(where for where in self.where if server == VALKEY or where not in _PROXIED)


FAULTS: Final[Mapping[str, FaultKind]] = {
    "kill": FaultKind((WORKER, RELAY), 8, (0.0, 1.5), words="SIGKILL, started again"),
    "terminate": FaultKind((WORKER, RELAY), 4, words="SIGTERM, started again"),
    "terminate twice": FaultKind((WORKER,), 2, (0.0, 0.5), words="SIGTERM twice, started again"),
    "freeze": FaultKind((WORKER, RELAY), 6, (0.3, 6.0), words="SIGSTOP, then SIGCONT"),
    "crash": FaultKind((REDIS,), 4, (0.0, 2.0), words="kill -9, started again on its append-only file", on=(VALKEY,)),
    "failover": FaultKind(
        (REDIS,), 4, amount=(0, 5), words="a replica takes its primary's place", on=(CLUSTER, SENTINEL)
    ),
    "migrate": FaultKind((REDIS,), 6, amount=(0, 5), words="a slot with jobs moves to another node", on=(CLUSTER,)),
    "kill normal": FaultKind((REDIS,), 3, words="CLIENT KILL TYPE normal"),
    "kill pubsub": FaultKind((REDIS,), 3, words="CLIENT KILL TYPE pubsub"),
    "kill all": FaultKind((REDIS,), 2, words="CLIENT KILL of every connection"),
    "script flush": FaultKind((REDIS,), 2, words="SCRIPT FLUSH"),
    "cut": FaultKind(LINKS, 8, words="connections reset"),
    "silence": FaultKind(LINKS, 4, words="connections half-open for ever"),
    "swallow": FaultKind(LINKS, 3, (0.3, 4.0), words="bytes swallowed, then reset"),
    "hold": FaultKind(LINKS, 4, (0.3, 4.0), words="bytes held back"),
    "delay": FaultKind(LINKS, 4, (0.5, 4.0), (5, 150), words="bytes delayed"),
    "go away": FaultKind(LINKS, 3, (0.2, 3.0), words="connections refused"),
    "cut after": FaultKind(LINKS, 4, (0.5, 3.0), (1, 20_000), words="connections reset after N bytes"),
    "lost reply": FaultKind((WORKER_REDIS,), 6, (2.0, 2.0), words="a script applied, its reply lost"),
}


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault. `amount` is milliseconds for a delay, bytes for a cut after so many, the partition on a cluster."""

    at: float
    """Seconds after the start."""
    name: str
    where: str
    which: int
    """Of the workers, or of the relays, counted from 0."""
    lasts: float
    amount: int

    def __str__(self) -> str:
        place = f"{self.where} {self.which + 1}" if self.where != REDIS and self.where != CLIENT_REDIS else self.where
        lasts = f" for {self.lasts:.1f} s" if self.lasts else ""
        return f"{place}: {FAULTS[self.name].words}{lasts}"


def fault_plan(seed: int, workers: int, relays: int, server: str = VALKEY) -> Iterator[PlannedFault]:
    """The faults of a seed, in order of time, without end.

    :param server: the kind of Redis.
    """
    dice = random.Random(f"faults {seed}")  # noqa: S311 - to be repeated, not to be secret
    names = [name for name, kind in FAULTS.items() if kind.places(server)]
    weights = [FAULTS[name].weight for name in names]
    at = 0.0
    while True:
        at += dice.expovariate(1 / PAUSE)
        for _ in range(dice.choices((1, 2, 3), AT_ONCE)[0]):
            name = dice.choices(names, weights)[0]
            kind = FAULTS[name]
            where = dice.choice(kind.places(server))
            number = {WORKER: workers, WORKER_REDIS: workers, WORKER_PROVIDER: workers, CLIENT_REDIS: 1, REDIS: 1}
            which = dice.randrange(number.get(where, relays))
            yield PlannedFault(at, name, where, which, round(dice.uniform(*kind.lasts), 2), dice.randint(*kind.amount))
