"""Stream tokens: who may follow (and cancel) which jobs, and until when.

A JWT (RFC 7519), signed with HMAC-SHA256 under a key that web app and relay share, so that the web app makes one
without asking anybody. A token names at least one scope: job ids, patterns of channels, or a subject. Nothing but
HS256 is accepted, whatever a token's header says, and everything a token may hold is bounded.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import orjson

from deltafan.channels import CHANNEL_MAX
from deltafan.errors import ConfigurationError, FieldError, TokenExpired, TokenInvalid, ValidationError
from deltafan.job import JOB_ID
from deltafan.settings import TokenSettings

Hidden = Literal["reasoning", "tool_arguments", "tool_results"]
HIDDEN: Final[tuple[Hidden, ...]] = ("reasoning", "tool_arguments", "tool_results")
"""What a token may hide of a job's events."""

AUDIENCE: Final = "deltafan"
TOKEN_MAX: Final = 8000
"""Characters of a token: with `Authorization: Bearer ` it fits the 8 KiB that servers allow a header."""
MAX_JOBS: Final = 100
MAX_PATTERNS: Final = 20
SUBJECT_MAX: Final = 200
"""Characters, as in a job's `subject`."""
TENANT_MAX: Final = 64
MIN_SECRET: Final = 32
"""Characters of a key's secret: HS256 wants 256 bits (RFC 7518, section 3.2)."""
LEEWAY: Final = 10.0
"""Seconds by which the clock of who made a token may be ahead of ours. Its end is exact, by our clock."""
TTL_MAX: Final = 366 * 86_400.0

_ALGORITHM = "HS256"
_FOREVER = 1e11  # beyond it, an end is not in seconds
_KID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECRET = re.compile(r"[\x21-\x7e]+")
_PATTERN = re.compile(r"[A-Za-z0-9_\-=@,.;:/#*]+")
_SCOPES: Final = ("read", "cancel")


class Followed(Protocol):
    """What of a job's record decides who may follow it; `JobStatus` has it."""

    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def channel(self) -> str | None: ...
    @property
    def pusher_channels(self) -> tuple[str, ...]: ...
    @property
    def subject(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified token allows."""

    tenant: str
    jobs: frozenset[str]
    channels: tuple[str, ...]
    """Patterns, in which `*` stands for any characters."""
    subject: str | None
    rights: frozenset[str]
    """`read`, `cancel`, or both."""
    hide: frozenset[Hidden]
    expires: float
    """Unix time in seconds."""

    def covers(self, job: Followed, mine: Callable[[str], bool] | None = None) -> bool:
        """Whether a job is in one of the scopes.

        :param mine: whether a channel belongs to the grant's tenant; of others, no pattern is compared.
        """
        if job.tenant != self.tenant:
            return False
        if job.id in self.jobs or (self.subject is not None and job.subject == self.subject):
            return True
        named = (*job.pusher_channels, *(() if job.channel is None else (job.channel,)))
        return any((mine is None or mine(name)) and self.matches(name) for name in named)

    def matches(self, channel: str) -> bool:
        """Whether a channel's whole name fits one of the patterns."""
        return any(fits(pattern, channel) for pattern in self.channels)

    def expired(self, now: float) -> bool:
        """:param now: Unix time in seconds."""
        return now >= self.expires

    @property
    def fingerprint(self) -> str:
        """The same for every token that allows the same, whenever it was made: 32 hexadecimal digits."""
        parts = [self.tenant, sorted(self.jobs), self.channels, self.subject, sorted(self.rights), sorted(self.hide)]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]


def fits(pattern: str, name: str) -> bool:
    """Whether `name` is of the form of `pattern`. Each piece between stars is sought once, from the left: no pattern
    takes long, whoever wrote it."""
    head, *pieces = pattern.split("*")
    if not pieces:
        return name == pattern
    tail = pieces.pop()
    if len(name) < len(head) + len(tail) or not name.startswith(head) or not name.endswith(tail):
        return False
    at, end = len(head), len(name) - len(tail)
    for piece in pieces:
        found = name.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def looks_like_token(text: str) -> bool:
    """Whether a credential is a JWT by its form: three parts, the first of them a JSON object in base64."""
    return text.count(".") == 2 and text.startswith("ey")


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The keys: the first signs, all verify."""

    secrets: Mapping[str, str] = field(repr=False)
    ttl: float

    @classmethod
    def of(cls, settings: TokenSettings) -> TokenKeys | None:
        """`None` when no keys are set.

        :raises ConfigurationError: naming an entry by its place, never by its content.
        """
        secrets: dict[str, str] = {}
        for place, entry in enumerate(settings.token_keys, start=1):
            kid, equals, secret = entry.strip().partition("=")
            if not equals or not _KID.fullmatch(kid):
                raise _wrong_key(place, "must be kid=secret, with 1 to 64 letters, digits, _ . or - before the =")
            if len(secret) < MIN_SECRET or not _SECRET.fullmatch(secret):
                raise _wrong_key(place, f"the secret must be {MIN_SECRET} or more visible ASCII characters")
            if kid in secrets:
                raise _wrong_key(place, "another key has the same name before the = already")
            secrets[kid] = secret
        return cls(secrets, settings.token_ttl) if secrets else None

    def mint(
        self,
        tenant: str,
        *,
        jobs: Collection[str] = (),
        channels: Collection[str] = (),
        subject: str | None = None,
        cancel: bool = False,
        ttl: float | None = None,
        hide: Collection[str] = (),
    ) -> str:
        """A token for the jobs of a tenant that are in `jobs`, or on a channel that fits `channels`, or `subject`'s.

        :param ttl: seconds; `token_ttl` when left out. A token ends on a full second, at most one later.
        :raises ValidationError: naming each argument that is wrong.
        """
        seconds = self.ttl if ttl is None else ttl
        problems = [
            *_scope_problems(jobs, channels, subject),
            *([] if _is_seconds(seconds) else [FieldError("ttl", f"must be more than 0 and at most {TTL_MAX:.0f} s")]),
            *([] if _are_hidden(hide) else [FieldError("hide", f"must be of {', '.join(HIDDEN)}")]),
        ]
        if problems:
            raise ValidationError(problems)
        now = time.time()
        claims: dict[str, Any] = {
            "aud": AUDIENCE,
            "tenant": tenant,
            "scope": "read cancel" if cancel else "read",
            "iat": int(now),
            "exp": math.ceil(now + seconds),
        }
        scopes = {"jobs": list(jobs), "channels": list(channels), "sub": subject, "hide": sorted(set(hide))}
        claims |= {name: value for name, value in scopes.items() if value}
        kid, secret = next(iter(self.secrets.items()))
        token: str = _jwt().encode(claims, secret, algorithm=_ALGORITHM, headers={"kid": kid})
        if len(token) > TOKEN_MAX:
            raise ValidationError([FieldError("", f"the token would be longer than {TOKEN_MAX} characters: name less")])
        return token

    def verify(self, token: str) -> Grant:
        """:raises TokenExpired: it was good once.
        :raises TokenInvalid: it never was.
        """
        if len(token) > TOKEN_MAX or not token.isascii():
            raise TokenInvalid(f"a stream token has at most {TOKEN_MAX} characters, all of them ASCII")
        jwt = _jwt()
        try:
            secret = self.secrets.get(jwt.get_unverified_header(token).get("kid", ""))
            if secret is None:
                raise TokenInvalid("the token names no key that is in use here")
            claims: dict[str, Any] = jwt.decode(
                token,
                secret,
                algorithms=[_ALGORITHM],
                audience=AUDIENCE,
                leeway=LEEWAY,
                options={"require": ["exp", "aud"], "verify_exp": False},  # below, to the moment
            )
        except jwt.exceptions.InvalidAudienceError:
            raise TokenInvalid("the token is for another audience") from None
        except jwt.exceptions.InvalidSignatureError:
            raise TokenInvalid("the signature of the token is wrong") from None
        except jwt.exceptions.ImmatureSignatureError:
            raise TokenInvalid("the token is not valid yet: compare the clocks") from None
        except jwt.exceptions.PyJWTError:
            raise TokenInvalid("this is no stream token of ours") from None
        grant = _grant(claims)
        if grant.expired(time.time()):
            raise TokenExpired("the token has expired")
        return grant


def _jwt() -> Any:
    import jwt

    return jwt


def _wrong_key(place: int, rule: str) -> ConfigurationError:
    return ConfigurationError(f"DELTAFAN_TOKEN_KEYS, entry {place}: {rule}")


def _scope_problems(jobs: Collection[str], channels: Collection[str], subject: str | None) -> Iterable[FieldError]:
    if not jobs and not channels and subject is None:
        yield FieldError("", "a token needs a scope: a job, channels or a subject")
    if not _are_jobs(jobs):
        yield FieldError("job", f"must be a job's id, or at most {MAX_JOBS} of them")
    if not _are_patterns(channels):
        rule = f"1 to {CHANNEL_MAX} letters, digits and _ - = @ , . ; : / # *"
        yield FieldError("channels", f"must be a list of at most {MAX_PATTERNS} patterns, each of {rule}")
    if subject is not None and not _is_text(subject, SUBJECT_MAX):
        yield FieldError("subject", f"must be 1 to {SUBJECT_MAX} printable characters")


def _grant(claims: Mapping[str, Any]) -> Grant:
    """Trust in the signature is not trust in the form: another program may have made it."""
    scope = claims.get("scope")
    rights = scope.split() if isinstance(scope, str) else []
    tenant, subject, expires = claims.get("tenant"), claims.get("sub"), claims.get("exp")
    jobs, channels, hide = (claims.get(name, []) for name in ("jobs", "channels", "hide"))
    for name, right in (
        ("tenant", _is_text(tenant, TENANT_MAX)),
        ("scope", bool(rights) and set(rights) <= set(_SCOPES)),
        ("exp", isinstance(expires, int | float) and not isinstance(expires, bool) and 0 < expires < _FOREVER),
        ("jobs", isinstance(jobs, list) and _are_jobs(jobs)),
        ("channels", isinstance(channels, list) and _are_patterns(channels)),
        ("sub", subject is None or _is_text(subject, SUBJECT_MAX)),
        ("hide", isinstance(hide, list) and _are_hidden(hide)),
    ):
        if not right:
            raise TokenInvalid(f"the claim {name} of the token is not right")
    if not jobs and not channels and subject is None:
        raise TokenInvalid("the token has no scope: it needs jobs, channels or sub")
    return Grant(
        tenant=str(tenant),
        jobs=frozenset(jobs),
        channels=tuple(channels),
        subject=subject,
        rights=frozenset(rights),
        hide=frozenset(hide),
        expires=float(expires or 0),
    )


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= longest and value.isprintable()


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= TTL_MAX


def _are_jobs(values: Collection[object]) -> bool:
    return _is_sequence(values, MAX_JOBS) and all(isinstance(v, str) and JOB_ID.fullmatch(v) for v in values)


def _are_patterns(values: Collection[object]) -> bool:
    return _is_sequence(values, MAX_PATTERNS) and all(
        isinstance(v, str) and len(v) <= CHANNEL_MAX and _PATTERN.fullmatch(v) for v in values
    )


def _are_hidden(values: Collection[object]) -> bool:
    return _is_sequence(values, len(HIDDEN)) and all(value in HIDDEN for value in values)


def _is_sequence(values: object, longest: int) -> bool:
    """A string is a sequence too, of letters, which nobody means."""
    return isinstance(values, Sequence | set | frozenset) and not isinstance(values, str) and len(values) <= longest
