"""How often one may ask: token buckets by key and by address, in tables that no number of addresses can grow."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from aiohttp import web

from deltafan.errors import ConfigurationError
from deltafan.relay.answers import Refusal
from deltafan.settings import RelaySettings

TABLE_SIZE = 10_000
"""Buckets that are kept, the most recently used; one that is forgotten begins full again."""
BURST_SECONDS = 5.0
"""What may be asked at once: this many seconds' worth."""
FAILURE_BURST = 20.0
"""Wrong keys and tokens that an address may show before it has to wait."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_V6_PREFIX = 64  # the smallest network that a customer gets: one host has all of its addresses
_NOBODY = "-"  # a Unix socket has no address


class Buckets:
    """Token buckets by name, each filled at `rate` a second up to `burst`. A rate of 0 is no limit."""

    def __init__(
        self, rate: float, burst: float, *, size: int = TABLE_SIZE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._size = size
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when it was that

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, name: str) -> float:
        """Take one from a bucket. 0 when there was one, else the seconds until there is, and nothing was taken."""
        if self._rate == 0:
            return 0.0
        level, now = self._level(name)
        if level < 1:
            return (1 - level) / self._rate
        self._levels[name] = (level - 1, now)
        self._levels.move_to_end(name)
        if len(self._levels) > self._size:
            self._levels.popitem(last=False)
        return 0.0

    def wait(self, name: str) -> float:
        """Seconds until there is one to take."""
        if self._rate == 0:
            return 0.0
        level, _ = self._level(name)
        return 0.0 if level >= 1 else (1 - level) / self._rate

    def _level(self, name: str) -> tuple[float, float]:
        now = self._clock()
        level, then = self._levels.get(name, (self._burst, now))
        return min(self._burst, level + (now - then) * self._rate), now


class Limits:
    """The limits of one relay process.

    :raises ConfigurationError: an entry of `trusted_proxies` is no network.
    """

    def __init__(self, settings: RelaySettings) -> None:
        self._proxies = parse_networks(settings.trusted_proxies)
        self._keys = Buckets(settings.key_rate, settings.key_rate * BURST_SECONDS)
        self._addresses = Buckets(settings.address_rate, settings.address_rate * BURST_SECONDS)
        self._failures = Buckets(settings.failure_rate, FAILURE_BURST)

    def address(self, request: web.Request) -> str:
        """Whose request it is, by address: the peer's, or what proxies that are trusted say of theirs."""
        return client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), self._proxies)

    def ask(self, address: str) -> None:
        """:raises Refusal: this address has asked too often."""
        _check(self._addresses.take(_bucket(address)), "this address asks too often")

    def ask_as(self, name: str) -> None:
        """:raises Refusal: the holder of this key or token has asked too often."""
        _check(self._keys.take(name), "this key or token is used too often")

    def check_failures(self, address: str) -> None:
        """:raises Refusal: this address has shown too many wrong keys and tokens."""
        _check(self._failures.wait(_bucket(address)), "too many wrong keys or tokens came from this address")

    def fail(self, address: str) -> None:
        """A wrong key or token has come from this address.

        :raises Refusal: one too many.
        """
        _check(self._failures.take(_bucket(address)), "too many wrong keys or tokens came from this address")


def _check(wait: float, message: str) -> None:
    if wait > 0:
        raise Refusal(429, message, headers={"Retry-After": str(math.ceil(wait))})


def parse_networks(entries: Sequence[str]) -> tuple[_Network, ...]:
    networks = []
    for place, entry in enumerate(entries, start=1):
        try:
            networks.append(ipaddress.ip_network(entry.strip()))
        except ValueError:
            rule = "must be an address or a network, such as 10.0.0.0/8"
            raise ConfigurationError(f"DELTAFAN_TRUSTED_PROXIES, entry {place}: {rule}") from None
    return tuple(networks)


def client_address(peer: str | None, forwarded: Sequence[str], proxies: Sequence[_Network]) -> str:
    """The nearest address that is no trusted proxy's. What a client itself writes into `X-Forwarded-For` is never
    believed: it stands to the left of what the first trusted proxy adds."""
    client = _NOBODY if peer is None else peer
    hops = [hop.strip() for header in forwarded for hop in header.split(",")]
    while hops and _trusted(client, proxies):
        hop = hops.pop()
        if _parsed(hop) is None:
            break
        client = hop
    return client


def _trusted(address: str, proxies: Sequence[_Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in proxies)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _bucket(address: str) -> str:
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), _V6_PREFIX), strict=False))
    return str(parsed or address)
