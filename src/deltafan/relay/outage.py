"""What the relay says of Redis in its log: once that it is away, once that it is back, whoever has met it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis.exceptions import MaxConnectionsError, ResponseError

from deltafan.broker.queue import AsyncQueue
from deltafan.broker.startup import check_answers
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry.outage import Outage

_LOOK_AGAIN: Final = 0.5
_CONNECTION: Final = "connection"


class RelayOutage:
    """Feeds one `Outage` from requests and from the followers' subscription.

    A request is not tried again here, and the next one may come in an hour: so Redis itself is asked, from the first
    failure to reach it until it answers. A Redis that answers and refuses (it is full, say) is found to serve again by
    the next request of the same kind.
    """

    def __init__(self, queue: AsyncQueue, outage: Outage) -> None:
        self._queue = queue
        self._outage = outage
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Hear of the subscription's losses."""
        self._queue.on_subscription_loss(self.lost)
        try:
            yield
        finally:
            self._queue.on_subscription_loss(None)
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.gather(self._looking, return_exceptions=True)

    def failed(self, activity: str, error: BrokerUnavailable | ConfigurationError) -> None:
        """Redis failed a request."""
        answered = isinstance(error.__cause__, ResponseError | MaxConnectionsError)
        if answered or isinstance(error, ConfigurationError):
            self._outage.failed(activity, error)
        else:
            self._outage.failed(_CONNECTION, error)
            self.lost()

    def went_well(self, activity: str) -> None:
        """A request was answered."""
        self._outage.went_well(activity)

    def lost(self) -> None:
        """A connection broke, or is silent: see whether Redis is there."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="deltafan-look-for-redis")

    async def _look(self) -> None:
        while True:
            try:
                await check_answers(self._queue.connections)
            except (BrokerUnavailable, ConfigurationError) as error:
                self._outage.failed(_CONNECTION, error)
                await asyncio.sleep(random.uniform(_LOOK_AGAIN / 2, _LOOK_AGAIN))  # noqa: S311 - jitter, not a secret
            else:
                self._outage.went_well(_CONNECTION)
                return
