"""The commands, keys and channels that an ACL must allow, and whether it does: each is tried, on keys of our own.

ACL DRYRUN would tell without trying, but who may run it may change the rights as well. The commands of a script are
checked as the script runs, so that they count like those that a client sends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from redis.exceptions import NoPermissionError

from deltafan.broker.address import Node
from deltafan.broker.cluster import ClusterRedis
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import GROUP, Partition
from deltafan.broker.misdirected import ClusterNodeError, mistake
from deltafan.broker.slots import slot_of
from deltafan.errors import BrokerUnavailable, ConfigurationError

Role = Literal["worker", "relay"]
"""`relay`: whoever enqueues, follows and looks at jobs. `worker`: whoever runs them."""
ROLES: Final[tuple[Role, ...]] = ("worker", "relay")
MEND: Final = (
    "ACL SETUSER <user> ~deltafan:* &deltafan:* "
    "+@read +@write +@stream +@sortedset +@hash +@string +@scripting +@pubsub +@connection +time +info "
    "+role +cluster|slots"
)
"""Rights that suffice."""
_SCRATCH_SECONDS: Final = 60
_MILLISECONDS: Final = _SCRATCH_SECONDS * 1000
_TWO_WORDS: Final = ("XGROUP", "XINFO", "PUBSUB", "CLUSTER", "CLIENT", "SCRIPT")
Words = tuple[str | int, ...]


def commands(role: Role, *, cluster: bool = False) -> list[str]:
    """What a user of that role runs, as `ACL SETUSER` names it after a plus: `xadd`, `xgroup|create`, …"""
    calls = [
        *_calls(role, Partition(0), "x"),
        *(_cluster_calls(role, Partition(0), "x") if cluster else ()),
        *((name,) for name in _subscribing(cluster)),
    ]
    return list(dict.fromkeys(_name(words).lower().replace(" ", "|") for words in calls))


async def missing_rights(connections: Connections, roles: Iterable[Role] = ROLES) -> list[str]:
    """What the server refuses us of all that these roles need; empty: nothing.

    Each node of a cluster has rights of its own: those that serve our partitions and can be reached are asked.

    :raises BrokerUnavailable: none can be reached.
    :raises ConfigurationError: it takes other credentials.
    """
    wanted = tuple(roles)
    asked = [_missing_at(connections, node, keys, wanted) for node, keys in await _places(connections)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    away = [answer for answer in found if isinstance(answer, BrokerUnavailable)]
    refused: list[str] = []
    for answer in found:
        if isinstance(answer, BaseException):
            if len(away) == len(found) or not isinstance(answer, BrokerUnavailable):
                raise answer
            continue
        refused += answer
    return list(dict.fromkeys(refused))


async def _places(connections: Connections) -> list[tuple[Node | None, Partition]]:
    """A partition of each server. Where nobody serves one of a cluster, the others are what there is to ask."""
    slots, numbers = connections.slots, range(connections.settings.partitions)
    if slots is None:
        return [(None, Partition(0))]
    with redis_errors():
        await slots.node(None)
    found = {slots.known(slot_of(Partition(number).deadlines)): Partition(number) for number in numbers}
    return [(node, keys) for node, keys in found.items() if node is not None]


async def _missing_at(connections: Connections, node: Node | None, keys: Partition, roles: Iterable[Role]) -> list[str]:
    scratch, cluster = f"rights-{secrets.token_hex(8)}", node is not None
    calls = [words for role in roles for words in _calls(role, keys, scratch)]
    if cluster:
        calls += [words for role in roles for words in _cluster_calls(role, keys, scratch)]
    calls += _cleaned_up(keys, scratch)
    redis = connections.commands
    if node is not None and isinstance(redis, ClusterRedis):
        redis = redis.client_of(node)
    pipe = redis.pipeline(transaction=False)
    for words in calls:
        pipe.execute_command(*words)
    with redis_errors():
        answers: list[Any] = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, ClusterNodeError) or "unknown command 'EVALSHA'" in str(answer):
            raise ConfigurationError(f"REDIS_URL: {mistake(answer)}")
    # Any other error is one of the command itself: it ran, which is what we asked.
    refused = [
        _what(words, str(answer))
        for words, answer in zip(calls, answers, strict=True)
        if isinstance(answer, NoPermissionError) or "NOPERM" in str(answer)
    ]
    for name in _subscribing(cluster):
        try:
            await _on_a_subscription(connections, node, name, keys.live(scratch))
        except ConfigurationError as error:
            refused.append(_what((name,), str(error)))
    return refused


async def require_rights(connections: Connections, role: Role) -> None:
    """:raises ConfigurationError: an ACL forbids something that this role needs; it is named."""
    missing = await missing_rights(connections, [role])
    if missing:
        raise ConfigurationError(f"Redis refuses its user what a {role} needs: {', '.join(missing)}; allow it: {MEND}")


async def _on_a_subscription(connections: Connections, node: Node | None, command: str, channel: str) -> None:
    connection = connections.subscription(node)
    try:
        with redis_errors():
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command(command, channel)
            # With a timeout of its own, redis-py gives None for silence; without, the connection's limit raises.
            await connection.read_response()
    finally:
        await connection.disconnect()


def _subscribing(cluster: bool) -> tuple[str, ...]:
    """Commands after which a connection is no longer one for others."""
    return ("SSUBSCRIBE", "SUNSUBSCRIBE") if cluster else ("SUBSCRIBE", "UNSUBSCRIBE")


def _name(words: Words) -> str:
    first = str(words[0])
    return f"{first} {words[1]}" if first in _TWO_WORDS else first


def _what(words: Words, message: str) -> str:
    if "channel" in message:
        return "channels deltafan:*"
    return "keys deltafan:*" if "key" in message else _name(words)


def _calls(role: Role, keys: Partition, scratch: str) -> Iterator[Words]:
    yield from _of_all(keys, scratch)
    yield from _of_workers(keys, scratch) if role == "worker" else _of_relays(keys, scratch)


def _of_all(keys: Partition, scratch: str) -> Iterator[Words]:
    record, log, delayed, live = keys.job(scratch), keys.log(scratch), keys.delayed(scratch), keys.live(scratch)
    yield ("PING",)
    yield "INFO", "server"
    yield "EVAL", "return 1", 1, record
    yield "EVALSHA", "0" * 40, 1, record
    yield ("TIME",)
    yield "HSET", record, "state", "x"
    yield "PEXPIRE", record, _MILLISECONDS
    yield "HGET", record, "state"
    yield "HMGET", record, "state"
    yield "EXISTS", record
    yield "XADD", log, "1-1", "e", "x"
    yield "PEXPIRE", log, _MILLISECONDS
    yield "XINFO", "CONSUMERS", log, GROUP
    yield "XPENDING", log, GROUP
    yield "XACK", log, GROUP, "1-1"
    yield "XRANGE", log, "-", "+"
    yield "XREVRANGE", log, "+", "-"
    yield "XDEL", log, "1-1"
    yield "ZADD", delayed, 1, "x"
    yield "PEXPIRE", delayed, _MILLISECONDS
    yield "ZCARD", delayed
    yield "ZREM", delayed, "x"
    yield "PUBLISH", live, "x"
    yield "SET", keys.worker(scratch), "x", "PX", _MILLISECONDS
    yield "GET", keys.worker(scratch)


def _of_relays(keys: Partition, scratch: str) -> Iterator[Words]:
    record, log, delayed = keys.job(scratch), keys.log(scratch), keys.delayed(scratch)
    yield "HSTRLEN", record, "metadata"
    yield "PERSIST", record
    yield "MGET", keys.worker(scratch)
    yield "XLEN", log
    yield "XINFO", "GROUPS", log
    yield "ZCOUNT", delayed, "-inf", "+inf"
    yield "ZREVRANGE", delayed, 0, 0
    yield "ZREVRANGEBYSCORE", delayed, "+inf", "-inf"


def _of_workers(keys: Partition, scratch: str) -> Iterator[Words]:
    record, log, delayed, beat = keys.job(scratch), keys.log(scratch), keys.delayed(scratch), keys.worker(scratch)
    yield "DEL", beat
    yield "HSETNX", record, "state", "x"
    yield "HINCRBY", record, "n", 1
    yield "HGETALL", record
    yield "HDEL", record, "n"
    yield "XADD", log, "2-1", "e", "x"
    yield "XGROUP", "CREATE", log, GROUP, "0"
    yield "XREADGROUP", "GROUP", GROUP, "x", "COUNT", 1, "STREAMS", log, ">"
    yield "XINFO", "GROUPS", log
    yield "XLEN", log
    yield "XCLAIM", log, GROUP, "x", 0, "2-1"
    yield "XTRIM", log, "MINID", "0"
    yield "XGROUP", "DELCONSUMER", log, GROUP, "x"
    yield "ZSCORE", delayed, "x"
    yield "ZRANK", delayed, "x"
    yield "ZRANGE", delayed, 0, 0
    yield "ZRANGEBYSCORE", delayed, "-inf", "+inf"
    yield "PUBSUB", "NUMSUB", keys.live(scratch)
    yield "SCRIPT", "LOAD", "return 1"  # of limits that are shared
    yield "PEXPIRE", record, _MILLISECONDS
    yield "PEXPIRE", log, _MILLISECONDS


def _cluster_calls(role: Role, keys: Partition, scratch: str) -> Iterator[Words]:
    live = keys.live(scratch)
    yield "CLUSTER", "SLOTS"
    yield "SPUBLISH", live, "x"
    if role == "worker":
        yield "PUBSUB", "SHARDNUMSUB", live
        yield "CLIENT", "ID"
        yield "CLIENT", "UNBLOCK", 0


def _cleaned_up(keys: Partition, scratch: str) -> list[Words]:
    """Whom the right to delete is missing, the expiry of what was written serves."""
    made = (keys.job(scratch), keys.log(scratch), keys.delayed(scratch), keys.worker(scratch))
    return [("PEXPIRE", key, 1) for key in made]
