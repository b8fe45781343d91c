"""The circuit breaker, by a clock of the test's own."""

from __future__ import annotations

from deltafan.sinks.pusher.circuit import AFTER_OUTAGE, AFTER_REFUSAL, LONGEST, LONGEST_OUTAGE, Circuit


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_when_its_time_is_over_one_request_tries_and_the_others_wait_for_how_it_ends() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    assert all(circuit.admit() for _ in range(3))
    assert circuit.open("over quota") == AFTER_REFUSAL
    assert circuit.open("over quota") == 0
    assert not circuit.admit()
    clock.now += AFTER_REFUSAL
    assert [circuit.admit() for _ in range(3)] == [True, False, False]
    circuit.give_back()
    assert [circuit.admit() for _ in range(2)] == [True, False]
    circuit.close()
    assert all(circuit.admit() for _ in range(3))
    assert circuit.reason == ""


def test_each_failure_in_a_row_doubles_the_pause_to_a_bound() -> None:
    for outage, first, longest in ((False, AFTER_REFUSAL, LONGEST), (True, AFTER_OUTAGE, LONGEST_OUTAGE)):
        clock = Clock()
        circuit = Circuit(clock)
        waits = []
        for _ in range(10):
            waits.append(circuit.open("away", outage=outage))
            clock.now += waits[-1]
        assert waits[:3] == [first, first * 2, first * 4]
        assert waits[-1] == longest
        circuit.close()
        assert circuit.open("away", outage=outage) == first
