"""A soak's schedule is a pure function of its seed."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from deltafan.chaos.schedule import FAULTS, LINKS, REDIS, RELAY, SERVERS, VALKEY, WORKER, fault_plan
from deltafan.chaos.workload import FOLLOWERS, workload
from deltafan.devserver.provider.overrides import metadata_options, override
from deltafan.devserver.provider.script import Script
from deltafan.job import parse_spec


@pytest.mark.parametrize("seed", [0, 7, 2**32])
def test_the_same_seed_gives_the_same_faults_and_jobs(seed: int) -> None:
    assert list(islice(fault_plan(seed, 3, 2), 500)) == list(islice(fault_plan(seed, 3, 2), 500))
    assert list(islice(workload(seed, 3.0), 500)) == list(islice(workload(seed, 3.0), 500))


def test_another_seed_gives_others() -> None:
    assert list(islice(fault_plan(1, 3, 2), 50)) != list(islice(fault_plan(2, 3, 2), 50))
    assert list(islice(workload(1, 3.0), 50)) != list(islice(workload(2, 3.0), 50))


def test_a_schedule_rises_in_time_and_names_what_is_there() -> None:
    faults = list(islice(fault_plan(7, 3, 2), 5000))
    assert all(earlier.at <= later.at for earlier, later in pairwise(faults))
    numbers: dict[str, set[int]] = {}
    for fault in faults:
        numbers.setdefault(fault.where, set()).add(fault.which)
    workers, relays, one = {0, 1, 2}, {0, 1}, {0}
    assert numbers == {
        WORKER: workers,
        "worker-Redis": workers,
        "worker-provider": workers,
        RELAY: relays,
        "relay-Redis": relays,
        "client-relay": relays,
        REDIS: one,
        "client-Redis": one,
    }


@pytest.mark.parametrize("server", SERVERS)
def test_every_fault_comes_up_everywhere_it_can(server: str) -> None:
    seen = {(fault.name, fault.where) for fault in islice(fault_plan(7, 3, 2, server), 5000)}
    assert seen == {(name, where) for name, kind in FAULTS.items() for where in kind.places(server)}
    links = set(LINKS) if server == VALKEY else {"worker-provider", "client-relay"}
    assert {where for _, where in seen} == links | {WORKER, RELAY, REDIS}


def test_every_job_is_one_that_the_queue_and_the_provider_take() -> None:
    jobs = list(islice(workload(7, 3.0), 500))
    assert all(earlier.at <= later.at for earlier, later in pairwise(jobs))
    for job in jobs:
        parse_spec({"model": "vllm/scripted", "prompt": "x", "idempotency_key": "y", **job.spec})
        override(Script(), metadata_options({"text": job.text, **job.scripted}), str)
        assert {follower.kind for follower in job.followers} <= set(FOLLOWERS)
        assert len(job.followers) >= 2
