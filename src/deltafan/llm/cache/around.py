"""The cache as its settings say, around what may be a router. The client and the worker make it here."""

from __future__ import annotations

from deltafan.llm.cache.protocol import Cache
from deltafan.llm.cache.ring import Cached
from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.router import Router
from deltafan.llm.seam import Completions
from deltafan.llm.settings import LLMSettings
from deltafan.telemetry.hooks import Hook


def cached(inner: Completions, cache: Cache, settings: CacheSettings, llm: LLMSettings, hook: Hook) -> Cached:
    """A router's names mean what its deployments are: other deployments, other entries."""
    router = inner if isinstance(inner, Router) else None
    return Cached(
        inner,
        cache,
        namespace=(router.digest if router else "") or "default",
        name_of=router.name_of if router else None,
        settings=llm,
        ttl=settings.cache_ttl,
        pace=settings.cache_pace,
        timeout=settings.cache_timeout,
        max_bytes=settings.cache_max_bytes,
        hook=hook,
    )
