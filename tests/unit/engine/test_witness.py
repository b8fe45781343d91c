"""A worker that was not heard itself judges nobody, until the living have had a lease to be heard again."""

from __future__ import annotations

from deltafan.engine.witness import Witness

LEASE = 9.0
TURN = LEASE / 3


def _beating(witness: Witness, begin: float, end: float) -> float:
    """Heartbeats in turn; gives when the last one went out."""
    now = begin
    while now + TURN <= end:
        now += TURN
        witness.beaten(now, [0])
    return now


def test_whoever_is_heard_without_a_break_judges_from_the_beginning() -> None:
    witness = Witness(LEASE, 100.0, [0])
    assert witness.may_judge(0, 100.0)
    now = _beating(witness, 100.0, 200.0)
    assert witness.may_judge(0, now)


def test_after_an_outage_that_may_have_cost_others_their_lease_one_lease_is_waited() -> None:
    witness = Witness(LEASE, 0.0, [0])
    now = _beating(witness, 0.0, 30.0)
    back = now + LEASE * 2 / 3
    assert not witness.may_judge(0, back), "during the outage already"
    witness.beaten(back, [0])
    assert not witness.may_judge(0, back)
    now = _beating(witness, back, back + LEASE - 0.1)
    assert not witness.may_judge(0, now)
    witness.beaten(back + LEASE, [0])
    assert witness.may_judge(0, back + LEASE)


def test_a_heartbeat_that_is_late_by_less_than_a_turn_is_no_outage() -> None:
    witness = Witness(LEASE, 0.0, [0])
    witness.beaten(TURN * 1.5, [0])
    assert witness.may_judge(0, TURN * 1.5)


def test_a_heartbeat_that_redis_has_forgotten_is_an_outage() -> None:
    witness = Witness(LEASE, 0.0, [0])
    witness.forgotten(0, 1.0)
    witness.beaten(1.0, [0])
    assert not witness.may_judge(0, 2.0)
    _beating(witness, 1.0, 1.0 + LEASE)
    assert witness.may_judge(0, 1.0 + LEASE)


def test_a_partition_that_was_away_is_judged_by_nobody_and_the_others_as_before() -> None:
    witness = Witness(LEASE, 0.0, [0, 1])
    for now in (TURN, 2 * TURN, 3 * TURN):
        witness.beaten(now, [0])
    assert witness.may_judge(0, 3 * TURN)
    assert not witness.may_judge(1, 3 * TURN)


def test_a_worker_that_waited_for_redis_to_come_back_gives_the_others_time() -> None:
    witness = Witness(LEASE, 0.0, [0])
    witness.beaten(20.0, [0])
    assert not witness.may_judge(0, 20.0)
