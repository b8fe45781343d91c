"""Names of everything deltafan keeps in Redis. All keys of a job share one hash slot: that of its partition."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from deltafan.job import PRIORITIES, partition_of

GROUP = "workers"
"""The consumer group of every queue stream."""
TAKEOVER = "takeover"
"""The stream that is read before all priorities: jobs that another worker had begun."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The keys of one partition."""

    number: int

    def _key(self, rest: str) -> str:
        return f"deltafan:{{{self.number}}}:{rest}"

    def queue(self, queue: str, priority: str) -> str:
        return self._key(f"queue:{queue}:{priority}")

    def queues(self, queue: str) -> list[str]:
        """A queue's streams in the order in which they are served."""
        return [self.queue(queue, priority) for priority in (TAKEOVER, *PRIORITIES)]

    def delayed(self, queue: str) -> str:
        return self._key(f"delayed:{queue}")

    @property
    def deadlines(self) -> str:
        """Sorted set: jobs, of all queues, that expire when they have not started by then."""
        return self._key("deadlines")

    def dead(self, queue: str) -> str:
        return self._key(f"dead:{queue}")

    def index(self, tenant: str) -> str:
        """Sorted set: a tenant's jobs by the time they were made."""
        return self._key(f"jobs:{tenant}")

    @property
    def expiries(self) -> str:
        """Sorted set: ended jobs by the time their record expires, for the sweeper of the indexes."""
        return self._key("expiries")

    def idempotency(self, tenant: str, key: str) -> str:
        digest = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
        return self._key(f"idempotency:{digest[:40]}")

    def worker(self, worker: str) -> str:
        """A worker's heartbeat: expires when it is silent for a lease."""
        return self._key(f"worker:{worker}")

    @property
    def control(self) -> str:
        """Prefix of the workers' control channels."""
        return self._key("control:")

    def job(self, job_id: str) -> str:
        return self._key(f"job:{job_id}")

    def log(self, job_id: str) -> str:
        return self._key(f"log:{job_id}")

    def live(self, job_id: str) -> str:
        return self._key(f"live:{job_id}")

    def interest(self, job_id: str) -> str:
        """There while somebody follows whom Redis does not see: see `interest.py`."""
        return self._key(f"interest:{job_id}")

    def of_job(self, job_id: str) -> tuple[str, str, str]:
        """Record, log and live channel: what most scripts begin with."""
        return self.job(job_id), self.log(job_id), self.live(job_id)


def partition(job_id: str) -> Partition:
    """The partition that a job id names.

    :raises ValidationError: when it is not a job id.
    """
    return Partition(partition_of(job_id))


def raw_job_id(number: int, queue: str, priority: str, entry: str) -> str:
    """The id of a job that was XADDed without one: whoever added it can compute it from XADD's reply."""
    return f"{number}-{queue}-{priority}-{entry}"
