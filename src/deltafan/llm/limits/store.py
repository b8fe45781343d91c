"""The seam under a bucket: where the window of one limit is kept, and the queue for it."""

from __future__ import annotations

from typing import Protocol

from deltafan.llm.limits.budget import Amount, Answer, Budget, Granted
from deltafan.llm.limits.headers import Observation


class Store(Protocol):
    """One limit. In every `window` the amounts granted, less what was given back, are within the budget: a grant
    counts from the moment it is made until a window later, whatever becomes of who got it.

    Order: first come, first served. Nothing is granted past a request that waits, however small it is.
    """

    budget: Budget

    async def take(self, ticket: str, need: Amount) -> Answer:
        """Take what is needed, or a place in the queue; ask again with the same ticket, and no other need.

        A caller that is cancelled has taken nothing.

        :raises CompletionError: `connection`, if the store cannot be reached.
        """
        ...

    async def settle(self, granted: Granted, back: Amount, more: int) -> None:
        """Give back what was not needed, where it still counts; charge tokens that were used beyond the grant, from
        now on. A store that cannot be reached is left as it is: then what was granted stays spent."""
        ...

    def withdraw(self, ticket: str, need: Amount) -> None:
        """Leave the queue."""
        ...

    def observe(self, observation: Observation) -> None:
        """Heed what the provider tells: a lower limit, less remaining than we think, a pause."""
        ...

    @property
    def forgettable(self) -> bool:
        """Whether nothing is lost if this object goes away."""
        ...

    async def aclose(self) -> None:
        """Wait for what is under way. What others gave is not closed."""
        ...
