"""Which partitions of a cluster can be served now: with one node away, the others' jobs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from deltafan.errors import BrokerUnavailable

_SHORTEST: Final = 0.25
"""Seconds for which a partition is left out, at least."""


class Presence:
    """Remembers which partitions failed, and leaves them out for twice the time that finding out took.

    :param apart: whether partitions can fail one by one. On one server a failure is everybody's, and is raised.
    """

    def __init__(self, *, apart: bool) -> None:
        self.unheard: frozenset[int] = frozenset()
        """Left out until further notice."""
        self._apart = apart
        self._until: dict[int, float] = {}
        self._why = "Redis has not got our heartbeat"

    def able(self, numbers: Iterable[int]) -> list[int]:
        """Those worth asking.

        :raises BrokerUnavailable: none of them.
        """
        now = asyncio.get_running_loop().time()
        able = [n for n in numbers if n not in self.unheard and self._until.get(n, 0.0) <= now]
        if not able:
            raise BrokerUnavailable(self._why)
        return able

    @contextmanager
    def noted(self, number: int) -> Iterator[None]:
        """Around asking one: that it is away is remembered and goes no further."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        except BrokerUnavailable as error:
            if not self._apart:
                raise
            now = loop.time()
            self._why = str(error)
            self._until[number] = now + max(_SHORTEST, 2 * (now - began))
