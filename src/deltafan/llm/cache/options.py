"""What a request may ask of the cache, in `Request.options`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltafan.errors import CompletionError, ValidationError
from deltafan.llm.checks import invalid, is_number

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Options of the cache. Those of other rings are none of its business."""

    identifier: str | None = None
    """The caller's name for the entry, a part of its key: equal requests with other identifiers have entries of their
    own, which is how one prompt gets several independent answers that are all cached."""
    tenant: str | None = None
    """Whose request it is, a part of the key: nothing that one tenant stored is ever read for another."""
    cache_response: bool = True
    """False: what is stored is read, but the answer is not stored."""
    rewrite_cache: bool = False
    """What is stored is not read; the new answer replaces it, with all its generations."""
    regen_cache: bool = False
    """What is stored is not read; the new answer is added as the newest generation. Readers get the newest; the
    earlier ones are kept for `Cached.generations`."""
    cache_errors: bool = False
    """A failure before the first delta is stored too, and what is stored may be one. Others pass stored failures by.

    Only what the same request would meet again, whoever asks (see `entry.LASTING`): nothing of a key, of money, of
    limits, of time or of the network."""
    ttl: float | None = None
    """Seconds that the entry is kept; `None` is what the ring was told."""

    @property
    def reads(self) -> bool:
        return not (self.rewrite_cache or self.regen_cache)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> CacheOptions:
        """Read them.

        :raises CompletionError: `bad_request`; names the option and the rule.
        """
        try:
            return cls.checked(options)
        except ValidationError as error:
            raise CompletionError("bad_request", error.message) from None

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> CacheOptions:
        """As `of`, for a caller who is told at once.

        :raises ValidationError: names the option and the rule.
        """
        found = cls(
            identifier=_name(options, "identifier"),
            tenant=_name(options, "tenant"),
            cache_response=_flag(options, "cache_response", True),
            rewrite_cache=_flag(options, "rewrite_cache", False),
            regen_cache=_flag(options, "regen_cache", False),
            cache_errors=_flag(options, "cache_errors", False),
            ttl=_seconds(options, "ttl"),
        )
        if found.rewrite_cache and found.regen_cache:
            raise invalid("regen_cache", "must not be set together with rewrite_cache")
        return found


def _flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise invalid(name, "must be true or false")


def _name(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, str) and 0 < len(value) <= _MAX_NAME:
        return value
    raise invalid(name, f"must be text of 1 to {_MAX_NAME} characters")


def _seconds(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    if is_number(value) and value > 0:
        return float(value)
    raise invalid(name, "must be a number of seconds greater than 0")
