"""A Redis URL that leads to a server of another kind: known by what the server says, and told as a rule."""

from __future__ import annotations

import re
from typing import Any, Final

from redis.asyncio import SSLConnection
from redis.exceptions import MovedError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

NODE: Final = "this is a node of a cluster: write redis+cluster://host:port"
SENTINEL: Final = "write redis+sentinel://host:port/name, with the name of the primary"
_SAID: Final = (
    ("DB index is out of range", "no such database: the server's setting `databases` says how many it has"),
    ("invalid DB index", "no such database: the server's setting `databases` says how many it has"),
    ("cluster support disabled", "this server is no cluster: write redis://host:port/0"),
    ("SELECT is not allowed in cluster mode", NODE),
)
_UNKNOWN: Final = re.compile(r"unknown command [`'](\w+)")
_ANNOTATED: Final = re.compile(r"of pipeline caused error: \((['\"])(.*)\1,?\)$", re.DOTALL)
_NOISE: Final = re.compile(r",? ?script: [0-9a-f]{40}, on @user_script:\d+\.?|, with args beginning with:.*", re.DOTALL)


class ClusterNodeError(ResponseError):
    """A node of a cluster has sent the client of a single server to another node."""


class Alone:
    """Mixed into connections to a single server: nobody there follows a redirection."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except MovedError as error:
            raise ClusterNodeError(NODE) from error


class AsksForTls:
    """Mixed into connections with TLS: a server without it waits for the rest of what it takes for a command."""

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().connect_check_health(*args, **kwargs)  # type: ignore[misc]
        except RedisTimeoutError as error:
            if "connecting" not in str(error):
                raise
            raise RedisTimeoutError(f"{error}; does it speak TLS?") from error


def telling(plain: type[Any], *, single: bool) -> tuple[type[Any], ...]:
    """What to mix into a class of connections."""
    return (*((Alone,) if single else ()), *((AsksForTls,) if issubclass(plain, SSLConnection) else ()))


def mistake(error: BaseException) -> str | None:
    """What is wrong with the URL, by a server's error; `None`: nothing that shows."""
    if isinstance(error, ClusterNodeError):
        return NODE
    text = plain(error)
    for said, rule in _SAID:
        if said in text:
            return rule
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        return f"the server has no command {unknown[1]}; if it is a sentinel, {SENTINEL}"
    return None


def plain(error: BaseException) -> str:
    """A server's words, without the pipeline and the script in which it met them."""
    text = str(error)
    annotated = _ANNOTATED.search(text)
    return _NOISE.sub("", annotated[2] if annotated is not None else text).strip()
