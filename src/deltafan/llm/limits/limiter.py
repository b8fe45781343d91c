"""Limits by model and key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm.checks import invalid, is_number
from deltafan.llm.limits.bucket import TokenBucket
from deltafan.llm.limits.budget import Budget
from deltafan.llm.limits.headers import Observation
from deltafan.llm.limits.memory import MemoryStore
from deltafan.llm.limits.slot import Slot
from deltafan.llm.limits.store import Store

MAX_LIMITS: Final = 4096
"""Models and keys that are counted at once. One that nobody uses any more makes room; if none can, a new one is
refused, for to forget one in use would break its limit."""

Budgets = Budget | Callable[[str], Budget | None]
"""One for each model, or what a model's is. `None` is no limit but what the provider tells."""
MakeStore = Callable[[str, Budget], Store]
"""Makes the store of one limit, by its name."""


class Limiter:
    """Keeps each model, for each key, within its budget.

        limiter = Limiter(Budget(requests=500, tokens=200_000))
        async with limiter.limit(prompt_tokens, model="openai/gpt-5", max_output=1000) as slot:
            ...
            slot.charge(output_tokens)

    :param stores: where limits are counted: by default in this process; `shared.in_redis(redis)` in all that use it.
    :param max_wait: seconds that a request waits for budget at most, whatever its own timeout. `None` is no bound.
    :raises ValidationError: an argument is not what it must be.
    """

    def __init__(
        self, budgets: Budgets | None = None, *, stores: MakeStore | None = None, max_wait: float | None = None
    ) -> None:
        if not (budgets is None or isinstance(budgets, Budget) or callable(budgets)):
            raise invalid("budgets", "must be a Budget, or a function of a model's name that gives one")
        if stores is not None and not callable(stores):
            raise invalid("stores", "must be a function that makes a store, such as in_redis(redis)")
        if max_wait is not None and not (is_number(max_wait) and max_wait >= 0):
            raise invalid("max_wait", "must be a number of seconds, 0 or more, or None")
        self._budgets = budgets
        self._stores = stores or _in_process
        self._max_wait = max_wait
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for what is still on its way to the stores."""
        for bucket in list(self._buckets.values()):
            await bucket.aclose()

    def __len__(self) -> int:
        """Limits that are kept."""
        return len(self._buckets)

    def limit(
        self,
        tokens: int = 0,
        requests: int = 1,
        *,
        max_output: int = 0,
        model: str = "",
        key: str = "",
        timeout: float | None = None,
    ) -> Slot:
        """A slot of the model's limit. See `TokenBucket.limit`.

        :param model: `provider/model`; providers limit by model.
        :param key: the API key, or any name for who is limited. It is kept as a digest only.
        :raises CompletionError: `rate_limit`, when too many limits are in use.
        """
        return self.bucket(model, key).limit(tokens, requests, max_output=max_output, timeout=timeout)

    def observe(self, observation: Observation, *, model: str = "", key: str = "") -> None:
        """Heed what the provider has told about a model. See `learn`."""
        if observation:
            self.bucket(model, key).observe(observation)

    def bucket(self, model: str = "", key: str = "") -> TokenBucket:
        """The limit of a model and a key.

        :raises CompletionError: `rate_limit`, when too many limits are in use.
        """
        name = (model, key_digest(key))
        found = self._buckets.get(name)
        if found is None:
            if len(self._buckets) >= MAX_LIMITS:
                self._forget()
            found = self._buckets[name] = self._new(*name)
        return found

    def _new(self, model: str, digest: str) -> TokenBucket:
        budgets = self._budgets
        budget = (budgets(model) if callable(budgets) else budgets) or Budget()
        if not isinstance(budget, Budget):
            raise ConfigurationError(f"budgets: what the function gives for {model} must be a Budget, or None")
        store = self._stores(f"{model} {digest}".strip(), budget)
        return TokenBucket(budget, name=model, store=store, max_wait=self._max_wait)

    def _forget(self) -> None:
        for name in [name for name, bucket in self._buckets.items() if bucket.forgettable]:
            del self._buckets[name]
        if len(self._buckets) >= MAX_LIMITS:
            raise CompletionError(
                "rate_limit", f"{MAX_LIMITS} limits are in use, by model and key: no room for another"
            )


def _in_process(name: str, budget: Budget) -> Store:
    return MemoryStore(budget)


def key_digest(key: str) -> str:
    """What a key is known by here: nobody can tell the key from it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""
