"""The Lua scripts: loading, and running them whether or not the server still has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from deltafan.broker.cluster import ClusterRedis

Arg = str | bytes | int | float


def pairs(record: Mapping[str, Arg]) -> list[Arg]:
    """A record as the scripts take it: field, value, field, value, …"""
    return [item for pair in record.items() for item in pair]


@dataclass(frozen=True, slots=True)
class Text:
    """A script as a server gets it, and the name by which the server knows it."""

    lua: str
    sha: str

    @classmethod
    def of(cls, publish: str, body: str) -> Self:
        """:param publish: the command for our own channels: a job's live channel and the workers' control channels."""
        lua = f"local PUBLISH = '{publish}'\n{body}"
        return cls(lua, hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Script:
    """One `.lua` file behind the common helpers. Its header says keys, arguments and answers."""

    name: str
    single: Text
    """For a single Redis."""
    cluster: Text
    """For a cluster, where the channels of our own are sharded."""

    def on(self, redis: Redis) -> Text:
        """What to run on this Redis."""
        return self.cluster if isinstance(redis, ClusterRedis) else self.single

    async def run(self, redis: Redis, keys: Sequence[str], args: Iterable[Arg]) -> Any:
        """Run it; a server that has lost its scripts is given this one again."""
        text = self.on(redis)
        try:
            return await redis.evalsha(text.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.eval(text.lua, len(keys), *keys, *args)


def _load(name: str) -> Script:
    folder = files("deltafan.broker").joinpath("lua")
    body = folder.joinpath("common.lua").read_text() + folder.joinpath(f"{name}.lua").read_text()
    return Script(name, Text.of("PUBLISH", body), Text.of("SPUBLISH", body))


ENQUEUE: Final = _load("enqueue")
TAKE: Final = _load("take")
CLAIM: Final = _load("claim")
APPEND: Final = _load("append")
FINISH: Final = _load("finish")
ACK: Final = _load("ack")
RETRY: Final = _load("retry")
RELEASE: Final = _load("release")
REAP: Final = _load("reap")
FORGET: Final = _load("forget")
GATHER: Final = _load("gather")
CANCEL: Final = _load("cancel")
EXPIRE: Final = _load("expire")
PROMOTE: Final = _load("promote")
REJECT: Final = _load("reject")
PAGE: Final = _load("page")

ALL: Final = (
    ENQUEUE,
    TAKE,
    CLAIM,
    APPEND,
    FINISH,
    ACK,
    RETRY,
    RELEASE,
    REAP,
    FORGET,
    GATHER,
    CANCEL,
    EXPIRE,
    PROMOTE,
    REJECT,
    PAGE,
)


@dataclass(frozen=True, slots=True)
class Call:
    """A script with its keys and arguments, for a pipeline."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Arg, ...]


async def run_all(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Run many calls in one round trip. Each answer stands in its call's place; an error stands there as a value."""
    pipe = redis.pipeline(transaction=False)
    for call in calls:
        pipe.evalsha(call.script.on(redis).sha, len(call.keys), *call.keys, *call.args)
    answers: list[Any] = await pipe.execute(raise_on_error=False)
    for place, answer in enumerate(answers):
        if isinstance(answer, NoScriptError):
            call = calls[place]
            try:
                answers[place] = await call.script.run(redis, call.keys, call.args)
            except RedisError as error:
                answers[place] = error
    return answers
