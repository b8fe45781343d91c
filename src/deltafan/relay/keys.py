"""API keys: whose they are, and what they allow. Only their digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from deltafan.errors import ConfigurationError

Right = Literal["enqueue", "read", "cancel", "admin"]
RIGHTS: Final[tuple[Right, ...]] = ("enqueue", "read", "cancel", "admin")
"""`enqueue` jobs, `read` them and their events, `cancel` them; `admin`: numbers and dead letters."""
DEFAULT_TENANT: Final = "default"
MIN_KEY: Final = 8
"""Characters of a key. Shorter ones are guessed."""
TENANT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_KEY = re.compile(r"[\x21-\x7e]+")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, as it is kept."""

    digest: bytes = field(repr=False)
    tenant: str
    rights: frozenset[Right]

    @property
    def name(self) -> str:
        """What limits and logs know it by: the beginning of its digest's digest, which says nothing about the key."""
        return f"key:{hashlib.sha256(self.digest).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    entries: tuple[ApiKey, ...] = ()

    @property
    def required(self) -> bool:
        return bool(self.entries)

    @property
    def tenants(self) -> frozenset[str]:
        return frozenset(entry.tenant for entry in self.entries)

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key. Every one is compared, in constant time, so that time says nothing about any of them."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found: ApiKey | None = None
        for entry in self.entries:
            if hmac.compare_digest(entry.digest, given):
                found = entry
        return found


def parse_keys(entries: Sequence[str]) -> ApiKeys:
    """Read `key`, `tenant=key` and `tenant:rights=key`; for a key, `sha256:<hex>` may stand. Rights are joined by `+`.

    :raises ConfigurationError: naming the entry by its place, never by its content.
    """
    found: dict[bytes, ApiKey] = {}
    for place, entry in enumerate(entries, start=1):
        parsed = _parse(place, entry.strip())
        if found.setdefault(parsed.digest, parsed) != parsed:
            raise _wrong(place, "the same key belongs to another tenant, or has other rights, already")
    return ApiKeys(tuple(found.values()))


def _parse(place: int, entry: str) -> ApiKey:
    head, equals, rest = entry.partition("=")
    who, key = (head, rest) if equals else (DEFAULT_TENANT, head)
    tenant, colon, named = who.partition(":")
    if not TENANT_NAME.fullmatch(tenant):
        raise _wrong(place, "the tenant must be 1 to 64 letters, digits, _ . or -, the first a letter or digit")
    rights = parse_rights(named) if colon else frozenset(RIGHTS)
    if rights is None:
        raise _wrong(place, f"rights must be of {', '.join(RIGHTS)}, joined by +")
    if stored := _DIGEST.fullmatch(key):
        return ApiKey(bytes.fromhex(stored[1]), tenant, rights)
    if key.startswith("sha256:"):
        raise _wrong(place, "sha256: must be followed by 64 hexadecimal digits")
    if len(key) < MIN_KEY or not _KEY.fullmatch(key):
        rule = f"the key must be {MIN_KEY} or more visible ASCII characters"
        raise _wrong(place, f"{rule} (one that holds = itself needs a tenant before it: default=KEY)")
    return ApiKey(hashlib.sha256(key.encode()).digest(), tenant, rights)


def parse_rights(text: str) -> frozenset[Right] | None:
    """Rights joined by `+`; `None` when one of them is none of ours."""
    named = text.split("+")
    return frozenset(right for right in RIGHTS if right in named) if set(named) <= set(RIGHTS) else None


def _wrong(place: int, rule: str) -> ConfigurationError:
    return ConfigurationError(f"DELTAFAN_API_KEYS, entry {place}: {rule}")
