"""How many listen to a job's channels."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import redis_errors


async def listeners(redis: Redis, live: str, own: str | None) -> int:
    """Subscriptions to a live channel and to a user's own one.

    On a cluster the live channel is sharded, and a plain channel's listeners are counted on the primaries: who listens
    at a replica is not seen.

    :raises BrokerUnavailable: a node that must be asked is away.
    """
    with redis_errors():
        if not isinstance(redis, ClusterRedis):
            counts: Any = await redis.pubsub_numsub(live, *([own] if own is not None else []))
            return sum(count for _, count in counts)
        sharded: Any = await redis.execute_command("PUBSUB", "SHARDNUMSUB", live)
        found = int(sharded[1])
        if own is not None:
            for client in await redis.primaries():
                plain: Any = await client.pubsub_numsub(own)
                found += sum(count for _, count in plain)
    return found
