"""Cross-origin access: an allow-list of origins, preflights, and the headers that every answer carries.

Origins that are listed by name may have their cookies sent along; whom only `*` lets in may not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deltafan.errors import ConfigurationError
from deltafan.relay.answers import Refusal

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\sA-Z]+")
_METHODS = "GET, POST, DELETE"
_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
_EXPOSED = "Location, Retry-After"
_MAX_AGE = 600
"""Seconds that a browser may remember a preflight."""


def check_origins(origins: Sequence[str]) -> None:
    """:raises ConfigurationError: an entry could never be what a browser sends."""
    for place, origin in enumerate(origins, start=1):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"DELTAFAN_CORS_ORIGINS, entry {place}: {origin!r} must be * or an origin as browsers send it, in "
                "lower case and without a path, such as https://app.example.org or http://localhost:3000"
            )


def preflight(origins: Sequence[str]) -> Middleware:
    """Answers a browser's question whether a page may ask. It carries no key, so it comes before access."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = "Origin" in request.headers and "Access-Control-Request-Method" in request.headers
        if request.method != "OPTIONS" or not asked:
            return await handler(request)
        if _allowed(request, origins) is None:
            raise Refusal(403, "this origin may not use the relay: list it in DELTAFAN_CORS_ORIGINS")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _HEADERS,
                "Access-Control-Max-Age": str(_MAX_AGE),
            },
        )

    return check


def common_headers(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """The headers of every answer, streams and errors included."""

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        secure(response)
        headers = response.headers
        if not origins or "Access-Control-Allow-Origin" in headers:
            return
        allowed = _allowed(request, origins)
        if allowed is not None:
            headers["Access-Control-Allow-Origin"] = allowed
            headers["Access-Control-Expose-Headers"] = _EXPOSED
            if allowed != "*":
                headers["Access-Control-Allow-Credentials"] = "true"
        if set(origins) != {"*"}:
            headers["Vary"] = "Origin"

    return add


def secure(response: web.StreamResponse) -> None:
    """The headers that even an answer to what is no request carries."""
    headers = response.headers
    headers["Server"] = "deltafan"
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("Referrer-Policy", "no-referrer")  # an address may hold a token
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")  # for what is fetched without CORS


def _allowed(request: web.Request, origins: Sequence[str]) -> str | None:
    origin = request.headers.get("Origin")
    if origin in origins and origin != "*":
        return origin
    return "*" if "*" in origins else None
