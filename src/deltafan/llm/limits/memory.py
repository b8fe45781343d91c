"""A limit of one process."""

from __future__ import annotations

import time
from collections.abc import Callable

from deltafan.llm.limits.budget import Amount, Answer, Budget, Granted, State, TooLarge, Waiting
from deltafan.llm.limits.headers import Observation
from deltafan.llm.limits.window import Window


class MemoryStore:
    """Implements `Store`. Nothing in it waits, so that each call is one step for every task of the loop.

    :param clock: seconds, never going back.
    """

    def __init__(self, budget: Budget, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._clock = clock
        self._window = Window(budget)
        self._queue: dict[str, Amount] = {}

    async def take(self, ticket: str, need: Amount) -> Answer:
        """See `Store.take`."""
        now = self._now()
        window = self._window
        if not window.ever_fits(need):
            self._queue.pop(ticket, None)
            return TooLarge(self._state(now, 0))
        ahead = self._ahead(ticket)
        if not ahead and window.fits(need, now):
            self._queue.pop(ticket, None)
            return Granted(now, window.add(need, now))
        self._queue.setdefault(ticket, need)
        demand = [*ahead, need]
        total = Amount(sum(each.tokens for each in demand), sum(each.requests for each in demand))
        # A millisecond at least: those ahead may have been granted by now, and have yet to ask.
        wait = max(1, window.wait(total, now)) / 1000
        return Waiting(wait, wait, max(0, window.paused_until - now) / 1000, self._state(now, len(ahead)))

    async def settle(self, granted: Granted, back: Amount, more: int) -> None:
        """See `Store.settle`."""
        now = self._now()
        self._window.used(now)
        self._window.give_back(back, granted.slice)
        self._window.add(Amount(tokens=more), now)

    def withdraw(self, ticket: str, need: Amount) -> None:
        """See `Store.withdraw`."""
        self._queue.pop(ticket, None)

    def observe(self, observation: Observation) -> None:
        """See `Store.observe`."""
        self._window.observe(observation, self._now())

    @property
    def forgettable(self) -> bool:
        """See `Store.forgettable`."""
        now = self._now()
        return not self._queue and now >= self._window.paused_until and self._window.used(now) == Amount()

    async def aclose(self) -> None:
        """See `Store.aclose`."""

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _ahead(self, ticket: str) -> list[Amount]:
        before = []
        for other, need in self._queue.items():
            if other == ticket:
                break
            before.append(need)
        return before

    def _state(self, now: int, ahead: int) -> State:
        return State(self._window.tokens, self._window.requests, self._window.used(now), ahead)
