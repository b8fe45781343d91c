"""A limit that all processes share, in Redis."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib.resources import files
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from deltafan.errors import CompletionError
from deltafan.llm.limits.budget import Amount, Answer, Budget, Granted, State, TooLarge, Waiting
from deltafan.llm.limits.headers import Allowance, Observation

T = TypeVar("T")
_SCRIPT: Final = files("deltafan.llm.limits").joinpath("limit.lua").read_text()
_WAITING, _GRANTED = 0, 1

LEASE: Final = 5.0
"""Seconds for which a place in the queue is kept for a process that does not ask. A dead one holds the others up for
no longer."""
ASK_AGAIN: Final = 0.25
"""Seconds after which the first of the queue asks again, to see what others gave back. Those far behind ask less."""
NOT_BEFORE: Final = 0.01
"""Seconds that those behind leave between two asks, while there is budget and the first has yet to come for it."""


class RedisStore:
    """Implements `Store` by one script, which takes its time from Redis. All keys are in one hash slot, and expire.

    :param redis: stays its owner's; it is not closed here. It should not retry by itself: what is taken twice is spent
        twice, though never more than the budget is granted.
    :param name: the same in all processes that share the limit.
    """

    def __init__(self, redis: Redis, name: str, budget: Budget) -> None:
        self.budget = budget
        self._script = redis.register_script(_SCRIPT)
        tag = f"{{limit:{readable(name)}}}"
        self._keys = [f"deltafan:{tag}:{part}" for part in ("window", "queue", "leases")]
        self._observed: tuple[Observation, float] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def take(self, ticket: str, need: Amount) -> Answer:
        """See `Store.take`."""
        member = _member(ticket, need)
        call = asyncio.ensure_future(self._run("take", member, need.tokens, need.requests))
        try:
            raw = await asyncio.shield(call)
        except asyncio.CancelledError:
            # Whether it was granted only the answer tells; it must not be charged to nobody.
            self._later(self._give_back(call, member, need))
            raise
        return _answer(raw)

    async def settle(self, granted: Granted, back: Amount, more: int) -> None:
        """See `Store.settle`. It is sent even if the caller is cancelled while it is."""
        work = self._run("settle", granted.slice, back.tokens, back.requests, more)
        with suppress(CompletionError):
            await asyncio.shield(self._later(work))

    def withdraw(self, ticket: str, need: Amount) -> None:
        """See `Store.withdraw`. It is sent by a task, so that nobody who ends waits for Redis."""
        self._later(self._run("withdraw", _member(ticket, need)))

    def observe(self, observation: Observation) -> None:
        """See `Store.observe`. It goes with the next call."""
        if self._observed is not None and not observation.pause:
            pause = max(0.0, self._observed[0].pause - (time.monotonic() - self._observed[1]))
            observation = Observation(observation.tokens, observation.requests, pause)
        self._observed = (observation, time.monotonic())

    @property
    def forgettable(self) -> bool:
        """See `Store.forgettable`: Redis remembers."""
        return not self._tasks and self._observed is None

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, operation: str, *args: str | int) -> list[int]:
        budget = self.budget
        head: list[Any] = [
            budget.window_ms,
            budget.slice_ms,
            _number(budget.tokens),
            _number(budget.requests),
            *self._told(),
            round(LEASE * 1000),
            operation,
        ]
        try:
            answer: list[int] = await self._script(keys=self._keys, args=[*head, *args])
        except (RedisError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise CompletionError("connection", f"the limiter's Redis cannot be used: {reason}") from error
        return answer

    def _told(self) -> list[int]:
        observed, self._observed = self._observed, None
        observation, when = observed or (Observation(), 0.0)
        age = time.monotonic() - when if observed else 0.0
        pause = max(0, round((observation.pause - age) * 1000))
        return [*_allowance(observation.tokens, age), *_allowance(observation.requests, age), pause]

    async def _give_back(self, call: asyncio.Future[list[int]], member: str, need: Amount) -> None:
        answer = _answer(await call)
        if isinstance(answer, Granted):
            await self.settle(answer, need, 0)
        else:
            await self._run("withdraw", member)

    def _later(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a lease, or the window, does without Redis what the task could not


def in_redis(redis: Redis) -> Callable[[str, Budget], RedisStore]:
    """What a `Limiter` takes to share its limits with all processes that use the same Redis. See `RedisStore`."""
    return lambda name, budget: RedisStore(redis, name, budget)


def readable(name: str) -> str:
    """The name as a part of a key: what a reader knows it by, and a digest that tells it from all others."""
    return f"{re.sub(r'[^A-Za-z0-9._/-]', '_', name)[:64]}:{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _member(ticket: str, need: Amount) -> str:
    return f"{ticket}:{need.tokens}:{need.requests}"


def _answer(raw: list[int]) -> Answer:
    status, now, slice_, wait, paused, ahead, tokens, requests, used_tokens, used_requests = raw
    if status == _GRANTED:
        return Granted(now, slice_)
    state = State(_limit(tokens), _limit(requests), Amount(used_tokens, used_requests), ahead)
    if status != _WAITING:
        return TooLarge(state)
    again = min(wait / 1000, max(ASK_AGAIN, ahead / 64), LEASE / 3)
    return Waiting(wait / 1000, max(again, NOT_BEFORE) if ahead else again, paused / 1000, state)


def _number(limit: int | None) -> int:
    return -1 if limit is None else limit


def _limit(number: int) -> int | None:
    return None if number < 0 else number


def _allowance(told: Allowance, age: float) -> list[int]:
    reset = -1 if told.reset is None else max(0, round((told.reset - age) * 1000))
    return [_number(told.limit), _number(told.remaining), reset]
