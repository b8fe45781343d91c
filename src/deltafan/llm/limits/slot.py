"""What one request holds of a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from deltafan.llm.limits.budget import Amount, Granted, check_count


class Slot:
    """What one request holds of a limit. Enter it with `async with`, once.

    At the end what was not used is given back. A body that says nothing about it, such as one that was cancelled, has
    used all: the provider may have counted it. It leaves the window by itself in any case, and so does what a process
    held that died.
    """

    def __init__(
        self,
        acquire: Callable[[Amount, float | None], Awaitable[Granted]],
        release: Callable[[Granted, Amount, int], Awaitable[None]],
        reserved: Amount,
        prompt: int,
        timeout: float | None,
    ) -> None:
        self._acquire = acquire
        self._release = release
        self._reserved = reserved
        self._prompt = prompt
        self._timeout = timeout
        self._granted: Granted | None = None
        self._used: int | None = None
        self._sent = True
        self.waited = 0.0
        """Seconds that it took to get budget."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._granted = await self._acquire(self._reserved, self._timeout)
        self.waited = loop.time() - begun
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        granted, self._granted = self._granted, None
        if granted is None:
            return
        if not self._sent:
            back, more = self._reserved, 0
        else:
            used = self._reserved.tokens if self._used is None else self._used
            back, more = Amount(max(0, self._reserved.tokens - used)), max(0, used - self._reserved.tokens)
        await self._release(granted, back, more)

    def charge(self, tokens: int) -> None:
        """Output tokens that were used, beside the prompt. More calls add up."""
        check_count("tokens", tokens)
        self._used = (self._prompt if self._used is None else self._used) + tokens

    def settle(self, tokens: int) -> None:
        """Tokens that were used in all, prompt and output: what the provider reports in the end."""
        check_count("tokens", tokens)
        self._used = tokens

    def refund(self) -> None:
        """Nothing was sent: all of it is given back, the requests too."""
        self._sent = False
