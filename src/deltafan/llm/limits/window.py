"""A sliding window over what was granted, counted in slices of time. No I/O, no clock: every method is told the time.

Why not a token bucket, which is what most limiters are: a full bucket grants all of its budget at once, and what flows
in during the next window as well, which is up to twice the budget within one window. Nor fixed windows: they grant the
budget twice around their border. Here what was granted counts until it is a window old, so that no window of any
beginning holds more than the budget; and whatever keeps that, stays within a provider's token bucket of that size and
rate, too.
"""

from __future__ import annotations

from deltafan.llm.limits.budget import Amount, Budget, lower
from deltafan.llm.limits.headers import Allowance, Observation


class Window:
    """What counts now. Times are in whole milliseconds and never go back; memory is one entry a slice."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._width = budget.window_ms
        self._step = budget.slice_ms
        self._tokens: dict[int, int] = {}
        self._requests: dict[int, int] = {}
        self._told_tokens: int | None = None
        self._told_requests: int | None = None
        self.paused_until = 0

    @property
    def tokens(self) -> int | None:
        """The limit of tokens that holds now."""
        return lower(self._budget.tokens, self._told_tokens)

    @property
    def requests(self) -> int | None:
        return lower(self._budget.requests, self._told_requests)

    def used(self, now: int) -> Amount:
        """What counts at this moment."""
        for counts in (self._tokens, self._requests):
            for slice_ in [s for s in counts if self._leaves(s) <= now]:
                del counts[slice_]
        return Amount(sum(self._tokens.values()), sum(self._requests.values()))

    def fits(self, need: Amount, now: int) -> bool:
        used = self.used(now)
        return (
            now >= self.paused_until
            and _fits(used.tokens, need.tokens, self.tokens)
            and _fits(used.requests, need.requests, self.requests)
        )

    def ever_fits(self, need: Amount) -> bool:
        """Whether an empty window has room for it."""
        return _fits(0, need.tokens, self.tokens) and _fits(0, need.requests, self.requests)

    def wait(self, need: Amount, now: int) -> int:
        """Milliseconds until it fits, if nothing is granted or given back before; at most a window and a slice for
        what is more than the budget."""
        used = self.used(now)
        free_at = max(
            self._free_at(self._tokens, used.tokens, need.tokens, self.tokens, now),
            self._free_at(self._requests, used.requests, need.requests, self.requests, now),
            self.paused_until,
        )
        return free_at - now

    def add(self, amount: Amount, now: int) -> int:
        """Count it from now on. Gives the slice where."""
        slice_ = now // self._step
        self._put(self._tokens, slice_, amount.tokens)
        self._put(self._requests, slice_, amount.requests)
        return slice_

    def give_back(self, amount: Amount, slice_: int) -> None:
        """What has left the window already is not there to give back."""
        for counts, number in ((self._tokens, amount.tokens), (self._requests, amount.requests)):
            if slice_ in counts:
                counts[slice_] = max(0, counts[slice_] - number)

    def observe(self, observation: Observation, now: int) -> None:
        self._told_tokens = observation.tokens.limit or self._told_tokens
        self._told_requests = observation.requests.limit or self._told_requests
        used = self.used(now)
        self._correct(self._tokens, used.tokens, self.tokens, observation.tokens, now)
        self._correct(self._requests, used.requests, self.requests, observation.requests, now)
        self.paused_until = max(self.paused_until, now + round(observation.pause * 1000))

    def _correct(self, counts: dict[int, int], used: int, limit: int | None, told: Allowance, now: int) -> None:
        """If the provider has less left than we think, others use the same budget: count that too, until its reset."""
        if told.remaining is None or limit is None or limit - used <= told.remaining:
            return
        reset = self._width if told.reset is None else min(self._width, round(told.reset * 1000))
        slice_ = min(-(-(now + reset - self._width) // self._step) - 1, now // self._step)
        if self._leaves(slice_) > now:
            self._put(counts, slice_, limit - used - told.remaining)

    def _leaves(self, slice_: int) -> int:
        """When all that was granted in this slice is a window old."""
        return (slice_ + 1) * self._step + self._width

    def _free_at(self, counts: dict[int, int], used: int, need: int, limit: int | None, now: int) -> int:
        if _fits(used, need, limit) or limit is None:
            return now
        if need > limit:
            return now + self._width + self._step
        excess = used + need - limit
        for slice_ in sorted(counts):
            excess -= counts[slice_]
            if excess <= 0:
                return self._leaves(slice_)
        return now + self._width + self._step

    @staticmethod
    def _put(counts: dict[int, int], slice_: int, number: int) -> None:
        if number:
            counts[slice_] = counts.get(slice_, 0) + number


def _fits(used: int, need: int, limit: int | None) -> bool:
    return limit is None or need == 0 or used + need <= limit
