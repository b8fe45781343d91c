"""What a worker or a relay looks at when it starts: whether Redis is one that deltafan can rely on."""

from __future__ import annotations

from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.rights import Role, require_rights
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry.hooks import Hook, Signal

NO_EVICTION: Final = "noeviction"
EVICTION_MEND: Final = "CONFIG SET maxmemory-policy noeviction, and in the configuration file too"


async def check_server(connections: Connections, role: Role, hook: Hook) -> None:
    """Warn of a server that throws keys away when its memory is full.

    :raises ConfigurationError: an ACL forbids what this role needs; it is named.
    :raises BrokerUnavailable: Redis cannot be reached.
    """
    await require_rights(connections, role)
    redis = connections.commands
    with redis_errors():
        servers = await redis.primaries() if isinstance(redis, ClusterRedis) else [redis]
    for server in servers:
        try:
            policy = await _eviction_policy(server)
        except BrokerUnavailable:
            if len(servers) == 1:
                raise
            continue  # of a cluster one node may be away; the others' jobs can be run
        lost = what_is_lost(policy)
        if lost is not None:
            hook(Signal("redis.evicts", "warning", {"policy": policy, "why": lost, "mend": EVICTION_MEND}))


async def check_answers(connections: Connections) -> None:
    """Ask Redis for a sign of life; on a cluster, each node that serves slots.

    :raises BrokerUnavailable: it cannot be reached, or is loading its data.
    :raises ConfigurationError: it wants other credentials.
    """
    redis = connections.commands
    with redis_errors():
        if isinstance(redis, ClusterRedis):
            await redis.slots.refresh()
            servers = await redis.primaries()
        else:
            servers = [redis]
        for server in servers:
            await cast("Any", server.ping())


def what_is_lost(policy: str) -> str | None:
    """What an eviction policy may cost; `None`: nothing, or nobody knows."""
    if policy in (NO_EVICTION, ""):
        return None
    if policy.startswith("allkeys"):
        return "when memory is full, queued jobs are thrown away"
    return "when memory is full, records and logs are thrown away"


async def _eviction_policy(server: Redis) -> str:
    """Empty where we may not ask."""
    try:
        with redis_errors():
            info: Any = await server.info("memory")
    except (ConfigurationError, ResponseError):
        return ""
    return str(info.get("maxmemory_policy", ""))
