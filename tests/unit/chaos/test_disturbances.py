"""What faults excuse: two requests at once for one job, and nothing else."""

from __future__ import annotations

import pytest

from deltafan.chaos.disturbances import LATE, Disturbances
from deltafan.chaos.oracle import Overlap
from deltafan.devserver.provider.journal import RequestRecord


def _overlap(earlier: float, later: float) -> Overlap:
    return Overlap(RequestRecord("a", started=earlier), RequestRecord("b", started=later), 1.0)


def _one(began: float, ended: float, *, lost: bool = False, blind: bool = False) -> Disturbances:
    disturbances = Disturbances()
    disturbance = disturbances.begin("worker 1: SIGSTOP", lost=lost, blind=blind)
    disturbance.began, disturbance.ended = began, ended
    return disturbances


@pytest.mark.parametrize(
    ("began", "ended", "later", "excused"),
    [
        pytest.param(10.0, 13.0, 12.0, True, id="meanwhile"),
        pytest.param(10.0, float("inf"), 20.0, True, id="still cut off"),
        pytest.param(10.0, 13.0, 13.0 + LATE, True, id="soon after"),
        pytest.param(10.0, 13.0, 13.1 + LATE, False, id="long after"),
        pytest.param(21.0, 22.0, 20.0, False, id="before"),
    ],
)
def test_a_worker_that_was_cut_off_excuses_what_began_then_or_soon_after(
    began: float, ended: float, later: float, excused: bool
) -> None:
    overlap = _overlap(9.0, later)
    assert _one(began, ended, lost=True).unexplained([overlap]) == ([] if excused else [overlap])


def test_a_provider_that_cannot_see_its_client_go_is_excused_as_long_as_it_answers() -> None:
    overlap = _overlap(9.0, 500.0)
    assert _one(10.0, 11.0, blind=True).unexplained([overlap]) == []
    assert _one(10.0, 11.0, lost=True).unexplained([overlap]) == [overlap]
    assert _one(1.0, 8.9 - LATE, blind=True).unexplained([overlap]) == [overlap]


def test_a_fault_that_cuts_nobody_off_excuses_nothing() -> None:
    overlap = _overlap(9.0, 12.0)
    assert _one(10.0, 11.0).unexplained([overlap]) == [overlap]
    assert not _one(10.0, 11.0).doubt(9.0, 12.0)
    assert _one(10.0, 11.0, lost=True).doubt(9.0, 12.0)


def test_the_faults_before_a_moment_are_told_latest_first() -> None:
    disturbances = Disturbances()
    for number in range(5):
        disturbances.begin(f"fault {number}").began = float(number)
    assert disturbances.before(3.5, number=2) == ["0.5 s before: fault 3", "1.5 s before: fault 2"]
