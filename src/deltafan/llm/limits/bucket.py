"""Waiting for the budget of one limit."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm.limits.budget import Amount, Budget, Granted, State, TooLarge, Waiting, check_count
from deltafan.llm.limits.headers import Observation
from deltafan.llm.limits.memory import MemoryStore
from deltafan.llm.limits.slot import Slot
from deltafan.llm.limits.store import Store

SEATS: Final = 16
"""Waiting requests of one process that stand in the store's queue. The others wait behind them, in order, and cost the
store nothing."""
MAX_WAITING: Final = 10_000
"""Requests that wait for one limit in one process. More are refused."""


@dataclass(frozen=True, slots=True)
class Statistics:
    waiting: int
    """Requests that wait for budget, in this process."""
    open: int
    """Slots that are held, in this process."""


class TokenBucket:
    """Requests and tokens within a window, for one model and key. In any window at most the budget is granted: a
    window slides over what was granted, where the textbook's token bucket allows twice as much (see `window`).

    It serves one event loop at a time: the next one may have it once the first is closed. A request waits behind all
    that came before it, so that a large one gets its turn.

    :param name: what messages call it.
    :param store: where it is counted; by default in this process. One store serves one bucket.
    :param max_wait: seconds that a request waits at most, whatever its own timeout. `None` is no bound.
    """

    def __init__(
        self, budget: Budget, *, name: str = "", store: Store | None = None, max_wait: float | None = None
    ) -> None:
        self.name = name
        self._store = store or MemoryStore(budget)
        self._max_wait = max_wait
        self._line: _Line | None = None
        self._open = 0

    @property
    def budget(self) -> Budget:
        return self._store.budget

    def limit(self, tokens: int = 0, requests: int = 1, *, max_output: int = 0, timeout: float | None = None) -> Slot:
        """A slot to enter with `async with`, which waits for budget.

        :param tokens: of the prompt.
        :param max_output: output tokens to reserve beside them. What is not used is given back at the end, and what
            was used beyond it is charged.
        :param timeout: seconds to wait at most.
        :raises ValidationError: a number is not a whole one from 0 to 2**40.

        Entering raises `CompletionError`: `bad_request` at once for more than the whole budget; `timeout_total` when
        `timeout` has passed; `rate_limit` when `max_wait` has, or when the provider's pause is longer than is left to
        wait, or too many wait already; `connection` when the store cannot be reached. And
        `ConfigurationError` in a second event loop while the first is open.
        """
        for name, number in (("tokens", tokens), ("requests", requests), ("max_output", max_output)):
            check_count(name, number)
        return Slot(self._acquire, self._release, Amount(tokens + max_output, requests), tokens, timeout)

    def observe(self, observation: Observation) -> None:
        """Heed what the provider has told. See `learn`."""
        if observation:
            self._store.observe(observation)
            self._wake_first()

    def statistics(self) -> Statistics:
        return Statistics(self._line.length if self._line else 0, self._open)

    @property
    def forgettable(self) -> bool:
        """Whether a new bucket in its place would grant the same."""
        return self.statistics() == Statistics(0, 0) and self._store.forgettable

    async def aclose(self) -> None:
        """Wait for what is still on its way to the store."""
        await self._store.aclose()

    async def _acquire(self, need: Amount, timeout: float | None) -> Granted:
        line = self._bind()
        if line.length >= MAX_WAITING:
            raise CompletionError("rate_limit", f"{self._title}: {MAX_WAITING} requests wait for it already")
        patience = min((bound for bound in (timeout, self._max_wait) if bound is not None), default=None)
        ends = None if patience is None else line.loop.time() + max(0.0, patience)
        waiter = _Waiter(secrets.token_hex(8), need)
        line.length += 1
        try:
            async with asyncio.timeout_at(ends), line.seats:
                granted = await self._queue_up(line, waiter, ends)
        except TimeoutError:
            code = "timeout_total" if patience == timeout else "rate_limit"
            raise self._too_long(code, f"no budget within {patience:g} s", line, waiter) from None
        finally:
            line.length -= 1
        self._open += 1
        return granted

    async def _queue_up(self, line: _Line, waiter: _Waiter, ends: float | None) -> Granted:
        wake = asyncio.Event()
        line.seated[waiter.ticket] = (wake, waiter.need)
        granted = None
        try:
            while granted is None:
                wake.clear()
                answer = await self._store.take(waiter.ticket, waiter.need)
                if isinstance(answer, Granted):
                    granted = answer
                elif isinstance(answer, TooLarge):
                    raise self._too_large(waiter.need, answer.state)
                else:
                    waiter.last = answer
                    if answer.paused and ends is not None and line.loop.time() + answer.paused > ends:
                        raise self._too_long("rate_limit", "the provider asked for a pause", line, waiter)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(answer.again):
                            await wake.wait()
        finally:
            del line.seated[waiter.ticket]
            if granted is None and waiter.last is not None:
                self._store.withdraw(waiter.ticket, waiter.need)
            self._wake_first()
        return granted

    async def _release(self, granted: Granted, back: Amount, more: int) -> None:
        self._open = max(0, self._open - 1)  # one of a loop that was closed is counted no more
        if back != Amount() or more:
            await self._store.settle(granted, back, more)
            self._wake_first()

    def _bind(self) -> _Line:
        """:raises ConfigurationError: another event loop, which is not closed, has it."""
        loop = asyncio.get_running_loop()
        line = self._line
        if line is None or line.loop is not loop:
            if line is not None and not line.loop.is_closed():
                raise ConfigurationError(
                    "limiter: it serves one event loop, and another one that is still open has it (a SyncClient has "
                    "one of its own): give each loop a limiter, and share the limit in Redis by stores=in_redis(redis)"
                )
            for ticket, (_, need) in line.seated.items() if line else ():  # nobody runs in a closed loop any more
                self._store.withdraw(ticket, need)
            line = self._line = _Line(loop)
            self._open = 0
        return line

    def _wake_first(self) -> None:
        """Whoever came first asks again; when it has been granted, it wakes the next."""
        for wake, _ in self._line.seated.values() if self._line else ():
            wake.set()
            return

    def _too_large(self, need: Amount, state: State) -> CompletionError:
        message = (
            f"the request takes up to {_say(need)}, more than {self._title} ever allows: {self._say_limits(state)}. "
            "Lower its max_tokens or its prompt, or raise the limit"
        )
        return CompletionError("bad_request", message)

    def _too_long(self, code: str, why: str, line: _Line, waiter: _Waiter) -> CompletionError:
        last = waiter.last
        if last is None:
            return CompletionError(code, f"{self._title}: {why}; {line.length} requests wait in this process")
        wait = max(last.wait, last.paused)
        message = (
            f"{self._title}: {why}. It needs {_say(waiter.need)}; {_say(last.state.used)} are used of "
            f"{self._say_limits(last.state)}, {last.state.ahead} requests were before it, and {wait:.3g} s were to go"
        )
        return CompletionError(code, message, retry_after=wait)

    @property
    def _title(self) -> str:
        return f"the limit of {self.name}" if self.name else "the limit"

    def _say_limits(self, state: State) -> str:
        limits = (
            f"{state.tokens} tokens" if state.tokens else "",
            f"{state.requests} requests" if state.requests else "",
        )
        return f"{' and '.join(filter(None, limits)) or 'no limit'} in {self.budget.window:g} s"


class _Line:
    """Those who wait in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.seats = asyncio.Semaphore(SEATS)
        self.seated: dict[str, tuple[asyncio.Event, Amount]] = {}
        self.length = 0


@dataclass(slots=True)
class _Waiter:
    ticket: str
    need: Amount
    last: Waiting | None = None


def _say(amount: Amount) -> str:
    return f"{amount.tokens} tokens and {amount.requests} requests"
