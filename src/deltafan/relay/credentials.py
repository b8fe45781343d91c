"""From a request to who asks: one credential, by precedence `Authorization`, cookie, query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aiohttp import web

from deltafan.errors import TokenExpired, TokenInvalid
from deltafan.relay.answers import Refusal
from deltafan.relay.keys import ApiKeys
from deltafan.relay.limits import Limits
from deltafan.relay.principal import ANYBODY, REALM, Principal
from deltafan.tokens import Grant, TokenKeys, looks_like_token

COOKIE: Final = "deltafan_token"
QUERY: Final = "token"
UNGUESSABLE: Final = 32
"""Characters of an API key from which on it counts as random, as `deltafan keys new` makes them."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request shows, and where. Only one is looked at: a wrong one is never made up for by another."""

    text: str
    source: Literal["header", "cookie", "query"]

    @classmethod
    def of(cls, request: web.Request) -> Credential | None:
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and text.strip():
            return cls(text.strip(), "header")
        if cookie := request.cookies.get(COOKIE):
            return cls(cookie, "cookie")
        if query := request.query.get(QUERY):
            return cls(query, "query")
        return None


class Authenticator:
    """Checks credentials against API keys and token keys.

    Wrong API keys count against their address. When it has shown too many, a short API key that has not been used
    before is no longer looked at, so that guessing is slow; long keys and tokens, which nobody guesses, and keys in use
    are still taken, so that a guesser behind the same proxy locks nobody out.
    """

    def __init__(self, keys: ApiKeys, tokens: TokenKeys | None, origins: Sequence[str], limits: Limits) -> None:
        self._keys = keys
        self._tokens = tokens
        self._origins = frozenset(origins) - {"*"}
        self._limits = limits
        self._in_use: set[str] = set()

    def principal(self, request: web.Request, address: str) -> Principal:
        """:raises Refusal: 401, with a code that says why; 403, a cookie that another site may have sent; 429."""
        given = Credential.of(request)
        if given is None:
            if not self._keys.required:
                return ANYBODY
            message = "the API key is missing: send Authorization: Bearer <key>, or a stream token"
            raise Refusal(401, message, headers={"WWW-Authenticate": REALM})
        if given.source == "header":
            known = self._known_key(given.text, address)
            if known is not None:
                return known
        if self._tokens is None and not self._keys.required:
            return ANYBODY
        grant = self._grant(given, address)
        if given.source == "cookie":
            self._check_origin(request)
        name = f"sub:{grant.tenant}:{grant.subject}" if grant.subject is not None else f"grant:{grant.fingerprint}"
        return Principal(grant.tenant, grant.rights, name, grant)

    def _known_key(self, text: str, address: str) -> Principal | None:
        key = self._keys.find(text)
        guessable = len(text) < UNGUESSABLE and not looks_like_token(text)
        if self._keys.required and guessable and (key is None or key.name not in self._in_use):
            self._limits.check_failures(address)
        if key is None:
            return None
        self._in_use.add(key.name)
        return Principal(key.tenant, key.rights, key.name)

    def _grant(self, given: Credential, address: str) -> Grant:
        is_token = looks_like_token(given.text)
        if self._tokens is None or (given.source == "header" and self._keys.required and not is_token):
            if not is_token:
                self._fail(address)
            what = "stream token" if is_token or given.source != "header" else "API key"
            why = "; no token keys are set" if what == "stream token" else ""
            raise _unauthorized("unauthorized", f"the {what} is not known here{why}")
        try:
            return self._tokens.verify(given.text)
        except TokenExpired as error:
            raise _unauthorized(error.code, error.message) from None
        except TokenInvalid as error:
            raise _unauthorized(error.code, error.message) from None

    def _fail(self, address: str) -> None:
        if self._keys.required:  # an open relay has nothing to guess
            self._limits.fail(address)

    def _check_origin(self, request: web.Request) -> None:
        """A browser adds cookies to whatever any page sends. `*` lists nobody here: it would be every page there is."""
        if request.method in SAFE_METHODS:
            return
        origin = request.headers.get("Origin")
        if origin is None or not (is_same_origin(request, origin) or origin in self._origins):
            raise Refusal(
                403,
                f"with the cookie {COOKIE}, only pages of this origin, or of one that DELTAFAN_CORS_ORIGINS names (and "
                "not by *), may change anything: the Origin header is missing or another. Or send the token as "
                "Authorization: Bearer",
            )


def is_same_origin(request: web.Request, origin: str) -> bool:
    """Whether a page's origin is the name that we were called by. A proxy may end TLS, so the scheme says nothing."""
    host = request.headers.get("Host")
    return bool(host) and origin.partition("://")[2] == host


def _unauthorized(code: str, message: str) -> Refusal:
    header = f'{REALM}, error="invalid_token", error_description="{message}"'
    return Refusal(401, message, code=code, headers={"WWW-Authenticate": header})
