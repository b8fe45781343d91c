"""What a Redis URL says: where the servers are, how they hang together, and how to connect to each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from redis.asyncio.connection import parse_url

from deltafan.errors import ConfigurationError

Node = tuple[str, int]
"""Host and port of one server."""
Topology = Literal["single", "sentinel", "cluster"]

_OPTIONS: Final = ("db", "username", "password", "client_name")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_PORTS: Final[Mapping[Topology, int]] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_SCHEMES: Final = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, and the last two with rediss+"
_QUOTING: Final = "a / ? # or @ in a password is written %2F %3F %23 %40"
_SEVERAL: Final = "several hosts need redis+sentinel:// or redis+cluster://"
_SOCKET: Final = "the path of the socket follows two slashes: unix:///run/redis.sock"
_HOSTS: Final = re.compile(r"(\[[0-9a-fA-F:.%]*\]|[^:\[\]]|:(?=\d*(,|$)))*")
"""Hosts and ports that are numbers; what follows may be a password whose host was forgotten."""


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis URL, taken apart."""

    topology: Topology
    options: Mapping[str, Any] = field(repr=False)
    """What every connection to a data node is made with (user, password, TLS, …), as redis-py names it."""
    nodes: tuple[Node, ...] = ()
    """The sentinels, or the nodes from which a cluster is found; a single server's place is in `options`."""
    service: str = ""
    """The sentinels' name of the primary."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """As `options`, of connections to sentinels."""


def redacted(url: str) -> str:
    """The URL without password and options, for messages. It may be malformed: a password can hold / ? # @ unquoted."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "(not a URL)"
    who, at, where = rest.rpartition("@")
    user = who.partition(":")[0] if ":" in who else ""
    where = _shown(where.partition("?")[0])
    return f"{scheme}://{user}:***@{where}" if at else f"{scheme}://{where}"


def _shown(where: str) -> str:
    hosts = where.partition("/")[0]
    known = _HOSTS.match(hosts)
    end = known.end() if known is not None else 0
    if end == len(hosts):
        return where
    return f"{hosts[:end]}:***" if hosts[end] == ":" else f"{hosts[:end]}***"


def parse_address(url: str) -> Address:
    """:raises ConfigurationError: the URL is not usable; names the rule and shows no secret."""
    try:
        return _parse(url)
    except (ValueError, TypeError) as error:
        raise unusable(url, error) from None


def unusable(url: str, error: Exception) -> ConfigurationError:
    """What to tell of a URL that redis-py or we cannot use."""
    return ConfigurationError(f"REDIS_URL {redacted(url)!r} is not usable: {error}")


def _parse(url: str) -> Address:
    scheme, found, rest = url.partition("://")
    base, plus, kind = scheme.lower().partition("+")
    topology: Topology = "single"
    match kind:
        case "sentinel":
            topology = "sentinel"
        case "cluster":
            topology = "cluster"
    if not found or base not in ("redis", "rediss", "unix") or (plus and (topology == "single" or base == "unix")):
        raise ValueError(f"the schemes are {_SCHEMES}")
    _check_options(url, topology)
    if topology == "single":
        _check_single(base, rest)
        return Address("single", parse_url(url))
    who, nodes, path, query = _split(rest, topology)
    credentials = f"{who}@" if who else ""
    # redis-py reads the rest: what it makes of one host goes for every node.
    options: dict[str, Any] = dict(parse_url(f"{base}://{credentials}node/?{query}"))
    del options["host"]
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
    if topology == "cluster":
        if path not in ("", "0") or options.pop("db", 0) != 0:
            raise ValueError("a cluster has the database 0 only")
        return Address("cluster", options, nodes)
    service, _, db = path.partition("/")
    if not service:
        raise ValueError("the name of the primary follows the sentinels: redis+sentinel://host:26379/mymaster")
    if db:
        if not (db.isascii() and db.isdigit()):
            raise ValueError("the database after the primary's name is a number")
        options["db"] = int(db)
    kept = {name: value for name, value in options.items() if name.startswith("ssl_") or name == "connection_class"}
    return Address("sentinel", options, nodes, service, kept | own)


def _check_single(base: str, rest: str) -> None:
    """:raises ValueError: redis-py would take another server or database than was meant, or show a password."""
    if base == "unix":
        before, slash, path = rest.partition("?")[0].partition("/")
        if not slash or not path or before.rpartition("@")[2]:
            raise ValueError(_SOCKET)
        return
    who, _, where = rest.rpartition("@")
    if any(mark in who for mark in "/?#"):
        raise ValueError(_QUOTING)
    hosts, _, path = where.partition("?")[0].partition("/")
    if "," in hosts:
        raise ValueError(_SEVERAL)
    _port(hosts)
    database = path.strip("/")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError("the database after the host is a number")


def _port(text: str) -> int | None:
    """The port of `host:port`. Python's error would show it, and it may be a password whose host was forgotten."""
    parts = urlsplit(f"//{text}")
    try:
        return parts.port
    except ValueError:
        raise ValueError("the port is a number up to 65535") from None


def _split(rest: str, topology: Topology) -> tuple[str, tuple[Node, ...], str, str]:
    """`user:pass@h1:1,h2:2/path?query` in its parts."""
    rest, _, query = rest.partition("?")
    who, _, where = rest.rpartition("@")
    if any(mark in who for mark in "/#"):
        raise ValueError(_QUOTING)
    hosts, _, path = where.partition("/")
    return who, tuple(_node(host, _PORTS[topology]) for host in hosts.split(",")), path.strip("/"), query


def _node(text: str, default_port: int) -> Node:
    """`host`, `host:port` or `[v6]:port`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.username is not None:
        raise ValueError("hosts are written host:port, with a comma between two")
    return parts.hostname, _port(text) or default_port


def _check_options(url: str, topology: Topology) -> None:
    """:raises ValueError: redis-py would let an option of the URL win over ours, or fail on it at its first command."""
    known = _OPTIONS + (_SENTINEL_OPTIONS if topology == "sentinel" else ())
    query = urlsplit(url).query
    if "@" in query:  # it would be a part of a password that we then show
        raise ValueError(_QUOTING)
    for name in parse_qs(query, keep_blank_values=True):
        if name not in known and not name.startswith("ssl_"):
            raise ValueError(f"option {name!r} is not one of {', '.join(known)}, ssl_…")
