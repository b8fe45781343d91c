"""A sink that publishes events on a Redis channel, on a Redis of its own or with no job behind it.

For a job's own `channel` the worker does not need it: the script that appends to the log publishes there, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from deltafan.events import Event, EventId
from deltafan.wire import encode


class RedisChannelSink:
    """One pipelined round trip a batch; events without an id get `1-<n>` in order."""

    def __init__(self, redis: Redis, channel: str, job_id: str = "0-local") -> None:
        self._redis = redis
        self._channel = channel
        self._job_id = job_id
        self._next = 0

    async def emit(self, batch: Sequence[Event]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for place, event in enumerate(batch):
            event_id = event.id or EventId(1, self._next + place)
            pipe.publish(self._channel, encode(self._job_id, event_id, event, event.first))
        await pipe.execute()
        self._next += len(batch)

    async def aclose(self) -> None:
        """The client is its owner's to close."""
