"""The promise, over random schedules by a clock of our own: never more than the budget in any window, and in order."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.errors import ValidationError
from deltafan.llm.limits import Allowance, Budget, Observation
from deltafan.llm.limits.budget import Amount, Granted, TooLarge, Waiting
from deltafan.llm.limits.memory import MemoryStore

T = TypeVar("T")
BUDGET = Budget(requests=5, tokens=100, window=60)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


@dataclass
class Held:
    granted: Granted
    amount: Amount


@dataclass
class Lab:
    """One limit, those who wait for it, and all that was ever granted, less what was given back."""

    budget: Budget = BUDGET
    now: float = 1000.0
    waiting: dict[str, Amount] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    grants: list[Held] = field(default_factory=list)
    tickets: int = 0

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.budget, clock=lambda: self.now)

    def ask(self, tokens: int, requests: int = 1) -> Granted | Waiting | TooLarge:
        self.tickets += 1
        return self._take(str(self.tickets), Amount(tokens, requests))

    def ask_again(self) -> None:
        """All who wait ask again, the last first: the order in which they ask must not matter."""
        before = list(self.waiting)
        while True:
            granted = [t for t in reversed(list(self.waiting)) if isinstance(self._take(t, self.waiting[t]), Granted)]
            if not granted:
                break
        left = list(self.waiting)
        assert left == before[len(before) - len(left) :], "granted out of turn"

    def _take(self, ticket: str, need: Amount) -> Granted | Waiting | TooLarge:
        answer = at_once(self.store.take(ticket, need))
        if isinstance(answer, Granted):
            assert next(iter(self.waiting), ticket) == ticket, "granted out of turn"
            self.waiting.pop(ticket, None)
            self.held.append(Held(answer, need))
            self.grants.append(self.held[-1])
            self.check(answer.at)
        elif isinstance(answer, Waiting):
            self.waiting[ticket] = need
            self.waits[ticket] = answer.wait
        return answer

    def settle(self, place: int, used: int) -> None:
        held = self.held.pop(place % len(self.held))
        back = max(0, held.amount.tokens - used)
        at_once(self.store.settle(held.granted, Amount(back), max(0, used - held.amount.tokens)))
        held.amount = Amount(held.amount.tokens - back, held.amount.requests)

    def withdraw(self, place: int) -> None:
        ticket = list(self.waiting)[place % len(self.waiting)]
        self.store.withdraw(ticket, self.waiting.pop(ticket))

    def check(self, end: int) -> None:
        """The window that ends here holds no more than the budget."""
        inside = [held.amount for held in self.grants if end - self.budget.window * 1000 < held.granted.at <= end]
        assert self.budget.tokens is None or sum(amount.tokens for amount in inside) <= self.budget.tokens
        assert self.budget.requests is None or sum(amount.requests for amount in inside) <= self.budget.requests


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 100), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.one_of(st.floats(0, 3), st.floats(55, 62)), st.none()),
        st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 130)),
        st.tuples(st.just("withdraw"), st.integers(0, 20), st.none()),
        st.tuples(st.just("told"), st.integers(0, 120), st.floats(0, 90)),
    ),
    max_size=60,
)


@given(steps)
def test_no_window_holds_more_than_the_budget_and_nothing_is_lost(schedule: list[tuple[str, Any, Any]]) -> None:
    lab = Lab()
    for what, first, second in schedule:
        if what == "ask":
            lab.ask(first, second)
        elif what == "pass":
            lab.now += first
            lab.ask_again()
        elif what == "settle" and lab.held:
            lab.settle(first, second)
        elif what == "withdraw" and lab.waiting:
            lab.withdraw(first)
        elif what == "told":
            lab.store.observe(Observation(tokens=Allowance(remaining=first, reset=second)))
        lab.ask_again()
    # Everybody gets a turn: the first of the queue waits no longer than it was told.
    while lab.waiting:
        left = len(lab.waiting)
        first_ticket = next(iter(lab.waiting))
        lab.ask_again()
        if lab.waiting and next(iter(lab.waiting)) == first_ticket:
            lab.now += lab.waits[first_ticket] + 0.001
            lab.ask_again()
        assert len(lab.waiting) < left
    # And when all has left the window, all of the budget is there again.
    lab.now += 61.1
    assert lab.store.forgettable
    assert isinstance(lab.ask(100, 5), Granted)


def test_a_full_budget_is_not_followed_by_another_within_the_window() -> None:
    """A token bucket would grant a second burst as it fills up again; fixed windows, around their border."""
    lab = Lab()
    assert isinstance(lab.ask(100), Granted)
    lab.now += 59.9
    assert isinstance(lab.ask(1), Waiting)
    lab.now += 1.1
    lab.ask_again()
    assert not lab.waiting


def test_a_small_request_does_not_pass_a_large_one_that_waits() -> None:
    lab = Lab()
    lab.ask(60)
    lab.now += 10
    assert isinstance(lab.ask(50), Waiting)
    answer = lab.ask(1)
    assert isinstance(answer, Waiting)
    assert answer.state.ahead == 1


def test_what_was_used_beyond_the_grant_is_owed() -> None:
    lab = Lab()
    lab.ask(10)
    lab.now += 30
    lab.settle(0, 150)
    answer = lab.ask(1)
    assert isinstance(answer, Waiting)
    assert 60 < answer.wait <= 61, "it counts from when it was known"


def test_a_refund_after_the_window_adds_nothing() -> None:
    lab = Lab()
    lab.ask(100)
    lab.now += 70
    lab.ask(100)
    lab.settle(0, 0)
    assert isinstance(lab.ask(1), Waiting)


def test_more_than_the_whole_budget_is_told_at_once() -> None:
    lab = Lab()
    assert isinstance(lab.ask(101), TooLarge)
    assert isinstance(lab.ask(1, 6), TooLarge)
    assert isinstance(lab.ask(100, 5), Granted), "it stands in nobody's way"


def test_memory_does_not_grow_with_what_is_granted() -> None:
    lab = Lab(Budget(requests=10**6, tokens=10**9))
    for _ in range(20_000):
        lab.now += 0.01
        at_once(lab.store.take("t", Amount(10, 1)))
    assert len(lab.store._window._tokens) <= 62


def test_a_provider_lowers_a_limit_and_does_not_raise_it() -> None:
    lab = Lab()
    lab.store.observe(Observation(tokens=Allowance(limit=40), requests=Allowance(limit=500)))
    assert isinstance(lab.ask(41), TooLarge)
    assert isinstance(lab.ask(1, 6), TooLarge)
    lab.store.observe(Observation(tokens=Allowance(limit=1000)))
    assert isinstance(lab.ask(100, 5), Granted)


def test_a_limit_that_only_the_provider_knows_is_learned() -> None:
    lab = Lab(Budget())
    assert isinstance(lab.ask(10**6), Granted)
    lab.store.observe(Observation(tokens=Allowance(limit=2 * 10**6)))
    assert isinstance(lab.ask(10**6 + 1), Waiting)


def test_what_others_use_of_the_same_budget_counts_until_the_providers_reset() -> None:
    lab = Lab()
    lab.ask(10)
    lab.store.observe(Observation(tokens=Allowance(remaining=20, reset=12)))
    assert isinstance(lab.ask(20), Granted)
    answer = lab.ask(20)
    assert isinstance(answer, Waiting)
    assert 11 < answer.wait <= 13
    lab.now += 13
    lab.ask_again()
    assert not lab.waiting


def test_the_same_news_twice_counts_once() -> None:
    lab = Lab()
    for _ in range(3):
        lab.store.observe(Observation(tokens=Allowance(remaining=50, reset=30)))
    assert isinstance(lab.ask(50), Granted)


def test_nothing_is_granted_in_a_pause() -> None:
    lab = Lab()
    lab.store.observe(Observation(pause=20))
    answer = lab.ask(1)
    assert isinstance(answer, Waiting)
    assert answer.paused == pytest.approx(20)
    lab.now += 19
    lab.ask_again()
    assert lab.waiting
    lab.now += 1.1
    lab.ask_again()
    assert not lab.waiting


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"requests": 0}, "requests"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": 1.5}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens": 2**41}, "tokens"),
        ({"window": 0}, "window"),
        ({"window": float("inf")}, "window"),
        ({"window": float("nan")}, "window"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_by_name(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Budget(**given)
    assert [error.field for error in caught.value.fields] == [field]
