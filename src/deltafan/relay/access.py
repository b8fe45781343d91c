"""Who may use the API, and as which tenant.

With keys, every address under `/v1` needs one, as `Authorization: Bearer <key>`. Without keys the relay is open, which
is meant for one's own machine: it listens on loopback only, and refuses what a foreign page could make a browser send
(a `Host` that is not loopback, which is DNS rebinding, or a POST from another origin).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deltafan.errors import ConfigurationError
from deltafan.relay.answers import Refusal

TENANT: Final = web.RequestKey("tenant", str)
DEFAULT_TENANT: Final = "default"
MIN_KEY: Final = 8
"""Characters of a key. Shorter ones are guessed."""

_TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]+")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_OPEN_PATHS = ("/healthz", "/readyz")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys, as digests only."""

    digests: tuple[tuple[bytes, str], ...] = field(default=(), repr=False)

    @property
    def required(self) -> bool:
        return bool(self.digests)

    def tenant(self, key: str) -> str | None:
        """Whose key it is. Every entry is compared, in constant time, so that time says nothing about any of them."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for digest, tenant in self.digests:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


def parse_keys(entries: Sequence[str]) -> ApiKeys:
    """Read `key`, `tenant=key`, `sha256:<hex>` and `tenant=sha256:<hex>`.

    :raises ConfigurationError: naming the entry by its place, never by its content.
    """
    digests: dict[bytes, str] = {}
    for place, entry in enumerate(entries, start=1):
        name, equals, rest = entry.strip().partition("=")
        tenant, key = (name, rest) if equals else (DEFAULT_TENANT, name)
        if not _TENANT_NAME.fullmatch(tenant):
            raise _wrong(place, "the tenant must be 1 to 64 letters, digits, _ . or -, the first a letter or digit")
        if stored := _DIGEST.fullmatch(key):
            digest = bytes.fromhex(stored[1])
        elif key.startswith("sha256:"):
            raise _wrong(place, "sha256: must be followed by 64 hexadecimal digits")
        elif len(key) < MIN_KEY or not _KEY.fullmatch(key):
            rule = f"the key must be {MIN_KEY} or more visible ASCII characters"
            raise _wrong(place, f"{rule} (one that holds = itself needs a tenant before it: default=KEY)")
        else:
            digest = hashlib.sha256(key.encode()).digest()
        if digests.setdefault(digest, tenant) != tenant:
            raise _wrong(place, "the same key belongs to another tenant already")
    return ApiKeys(tuple(digests.items()))


def _wrong(place: int, rule: str) -> ConfigurationError:
    return ConfigurationError(f"DELTAFAN_API_KEYS, entry {place}: {rule}")


def check_binding(host: str, keys: ApiKeys) -> None:
    """:raises ConfigurationError: an open relay would be reachable from other machines."""
    if not keys.required and not is_loopback(host):
        raise ConfigurationError(
            f"without API keys the relay listens on this machine only, not on {host or 'all interfaces'!r}: "
            "set DELTAFAN_API_KEYS or bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def access(keys: ApiKeys, origins: Sequence[str]) -> Middleware:
    """The middleware that lets requests in and names their tenant."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN_PATHS:
            return await handler(request)
        if not keys.required:
            _check_local(request, origins)
            request[TENANT] = DEFAULT_TENANT
        elif request.path.startswith("/v1/"):
            request[TENANT] = _authenticate(request, keys)
        return await handler(request)

    return check


def _authenticate(request: web.Request, keys: ApiKeys) -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    tenant = keys.tenant(key.strip()) if scheme.lower() == "bearer" else None
    if tenant is None:
        given = "is not known here" if key else "is missing: send Authorization: Bearer <key>"
        raise Refusal(401, f"the API key {given}", headers={"WWW-Authenticate": 'Bearer realm="deltafan"'})
    return tenant


def _check_local(request: web.Request, origins: Sequence[str]) -> None:
    host = request.headers.get("Host")
    if host is not None and not is_loopback(_hostname(host)):
        raise Refusal(
            403, "a relay without API keys answers only to localhost and 127.0.0.1: open it by that name, or set keys"
        )
    origin = request.headers.get("Origin")
    foreign = origin is not None and origin.partition("://")[2] != host and not {origin, "*"} & set(origins)
    if foreign and request.method not in {"GET", "HEAD", "OPTIONS"}:
        raise Refusal(403, "pages of other origins may not use this relay: list them in DELTAFAN_CORS_ORIGINS")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
