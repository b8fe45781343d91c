"""What a client's calls go through: the rings that it was told to put around the shared transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deltafan.client.transports import SharedTransport
from deltafan.llm import LLMSettings, Retrying
from deltafan.llm.agent import ToolLoop
from deltafan.llm.cache import Cache, Cached, CachedEmbedder
from deltafan.llm.cache.backends import open_cache
from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.compose import Ring, Rings, compose
from deltafan.llm.context import ContextCheck
from deltafan.llm.embeddings import Embedder
from deltafan.llm.limits import Limited, LimitedEmbedder, Limiter
from deltafan.llm.retry import RetryingEmbedder
from deltafan.llm.router import Router
from deltafan.llm.seam import Completions
from deltafan.llm.tools import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a client was told."""

    model: str
    settings: LLMSettings
    attempts: int
    backoff: float
    cache: Cache | CacheSettings | None
    """One that the caller owns, or how to open one."""
    cache_folder: Path
    redis_url: str
    limiter: Limiter | None
    router: Router | Ring | None
    fallbacks: tuple[str, ...]
    tools: tuple[Tool | Callable[..., object], ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """The rings, as one loop uses them."""

    completions: Completions
    embedder: Embedder
    close: Sequence[Callable[[], Awaitable[None]]]
    """To be called in this order."""

    async def aclose(self) -> None:
        for close in self.close:
            await close()


def open_chain(plan: Plan) -> Chain:
    """Nothing is connected yet.

    :raises ConfigurationError: the cache needs a setting or a library that is missing.
    """
    settings = plan.settings
    transport = SharedTransport(settings)
    tries = {"attempts": plan.attempts, "backoff": plan.backoff}
    embedder: Embedder = transport
    if plan.limiter is not None:
        embedder = LimitedEmbedder(embedder, plan.limiter, settings)
    embedder = RetryingEmbedder(embedder, **tries)  # type: ignore[arg-type]
    inner = Rings(
        tools=partial(ToolLoop, tools=plan.tools) if plan.tools else None,
        router=_router(plan),
        context=partial(ContextCheck, settings=settings),
        retry=partial(Retrying, **tries),  # type: ignore[arg-type]
        limiter=partial(Limited, limiter=plan.limiter, settings=settings) if plan.limiter is not None else None,
    )
    completions = compose(transport, inner)
    close: list[Callable[[], Awaitable[None]]] = [transport.aclose]
    cache, told = _cache(plan)
    if cache is not None:
        if cache is not plan.cache:
            close.insert(0, cache.aclose)
        common = {
            "settings": settings,
            "ttl": told.cache_ttl,
            "timeout": told.cache_timeout,
            "max_bytes": told.cache_max_bytes,
        }
        cached = Cached(completions, cache, pace=told.cache_pace, **common)  # type: ignore[arg-type]
        embedder = CachedEmbedder(embedder, cache, **common)  # type: ignore[arg-type]
        close.insert(0, cached.aclose)
        completions = cached
    return Chain(completions, embedder, close)


def _cache(plan: Plan) -> tuple[Cache | None, CacheSettings]:
    """The cache, and what is said of it: the defaults, where it is the caller's own."""
    if isinstance(plan.cache, CacheSettings):
        return open_cache(plan.cache, folder=plan.cache_folder, redis=plan.redis_url), plan.cache
    return plan.cache, CacheSettings()


def _router(plan: Plan) -> Ring | None:
    router = plan.router
    if isinstance(router, Router):
        return lambda _: router
    return router or (partial(_falling_back, plan) if plan.fallbacks else None)


def _falling_back(plan: Plan, inner: Completions) -> Router:
    return Router((), completions=inner, unlisted=True, fallbacks={plan.model: plan.fallbacks}, settings=plan.settings)
