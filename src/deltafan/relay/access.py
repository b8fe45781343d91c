"""Who is let in: the middleware that finds out who asks, before any handler runs.

With API keys, every address under `/v1` and `/pusher` needs a key or a stream token. Without keys the relay is open,
which is meant for one's own machine: it listens on loopback only, and refuses what a foreign page could make a browser
send (a `Host` that is not loopback, which is DNS rebinding, or a POST from another origin). A stream token restricts
its holder there, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deltafan.errors import ConfigurationError
from deltafan.relay.answers import Refusal
from deltafan.relay.credentials import SAFE_METHODS, Authenticator, is_same_origin
from deltafan.relay.keys import ApiKeys
from deltafan.relay.limits import Limits
from deltafan.relay.principal import PRINCIPAL
from deltafan.tokens import TokenKeys

ADDRESS: Final = web.RequestKey("address", str)
_OPEN_PATHS = ("/healthz", "/readyz")
_GUARDED = ("/v1/", "/pusher/", "/dev/")


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


def access(keys: ApiKeys, tokens: TokenKeys | None, origins: Sequence[str], limits: Limits) -> Middleware:
    """The middleware that lets requests in and says who asks. Probes pass unseen: they must not depend on a limit."""
    authenticator = Authenticator(keys, tokens, origins, limits)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _OPEN_PATHS:
            return await handler(request)
        address = request[ADDRESS] = limits.address(request)
        if keys.required:
            limits.ask(address)
        else:
            _check_local(request, origins)
        if request.path.startswith(_GUARDED):
            principal = authenticator.principal(request, address)
            if principal.name is not None:
                limits.ask_as(principal.name)
            request[PRINCIPAL] = principal
        return await handler(request)

    return check


def _check_local(request: web.Request, origins: Sequence[str]) -> None:
    host = request.headers.get("Host")
    if host is not None and not is_loopback(_hostname(host)):
        raise Refusal(
            403, "a relay without API keys answers only to localhost and 127.0.0.1: open it by that name, or set keys"
        )
    origin = request.headers.get("Origin")
    foreign = origin is not None and not is_same_origin(request, origin) and not {origin, "*"} & set(origins)
    if foreign and request.method not in SAFE_METHODS:
        raise Refusal(403, "pages of other origins may not use this relay: list them in DELTAFAN_CORS_ORIGINS")


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
