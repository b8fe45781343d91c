"""What the tests of limits share: a store that remembers its grants, and the promise checked over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from deltafan.llm.limits import Budget, Observation, TokenBucket
from deltafan.llm.limits.budget import Amount, Answer, Granted
from deltafan.llm.limits.store import Store


@dataclass
class Grant:
    at: int
    ticket: str
    amount: Amount
    """Less what was given back."""


@dataclass
class Recorder:
    """A `Store` around a real one. All recorders of a test share `grants`."""

    inner: Store
    grants: list[Grant]
    answered: set[str] = field(default_factory=set)
    """Tickets that have been granted, or stand in the queue."""
    held: dict[int, Grant] = field(default_factory=dict)
    """By the identity of the `Granted` that stands for it."""

    @property
    def budget(self) -> Budget:
        return self.inner.budget

    async def take(self, ticket: str, need: Amount) -> Answer:
        answer = await self.inner.take(ticket, need)
        if isinstance(answer, Granted):
            self.held[id(answer)] = Grant(answer.at, ticket, need)
            self.grants.append(self.held[id(answer)])
        self.answered.add(ticket)
        return answer

    async def settle(self, granted: Granted, back: Amount, more: int) -> None:
        await self.inner.settle(granted, back, more)
        grant = self.held.pop(id(granted))
        grant.amount = Amount(grant.amount.tokens - back.tokens, grant.amount.requests - back.requests)

    def withdraw(self, ticket: str, need: Amount) -> None:
        self.inner.withdraw(ticket, need)

    def observe(self, observation: Observation) -> None:
        self.inner.observe(observation)

    @property
    def forgettable(self) -> bool:
        return self.inner.forgettable

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class Lab:
    """One limit, by one or more buckets that stand for processes."""

    make: Callable[[Budget], Store]
    grants: list[Grant] = field(default_factory=list)
    stores: list[Recorder] = field(default_factory=list)

    def bucket(self, budget: Budget, max_wait: float | None = None) -> TokenBucket:
        self.stores.append(Recorder(self.make(budget), self.grants))
        return TokenBucket(budget, name="openai/gpt-5", store=self.stores[-1], max_wait=max_wait)

    async def settled(self) -> None:
        for store in self.stores:
            await store.aclose()


def check_windows(grants: list[Grant], budget: Budget) -> None:
    """No window, of whatever beginning, holds more than the budget. Those that end at a grant hold the most."""
    width = budget.window_ms
    for last in grants:
        inside = [grant.amount for grant in grants if last.at - width < grant.at <= last.at]
        assert budget.tokens is None or sum(amount.tokens for amount in inside) <= budget.tokens
        assert budget.requests is None or sum(amount.requests for amount in inside) <= budget.requests
