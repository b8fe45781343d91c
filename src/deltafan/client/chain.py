"""What a client's calls go through: the rings that it was told to put around the shared transport."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deltafan.client.transports import SharedTransport
from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm import LLMSettings, ProviderSettings, Retrying, split_model
from deltafan.llm.agent import ToolLoop
from deltafan.llm.cache import Cache, Cached, CachedEmbedder
from deltafan.llm.cache.around import cached
from deltafan.llm.cache.backends import open_cache
from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.compose import Ring, Rings, compose
from deltafan.llm.context import ContextCheck
from deltafan.llm.embeddings import Embedder, EmbeddingRequest, EmbeddingResult
from deltafan.llm.limits import Limited, LimitedEmbedder, Limiter
from deltafan.llm.retry import RetryingEmbedder
from deltafan.llm.router import Router
from deltafan.llm.seam import Completions
from deltafan.llm.tools import Tool
from deltafan.telemetry.hooks import Signal
from deltafan.wiring import load

ATTEMPTS: Final = 3
"""Of a client that was not told how often to try."""
_logger = logging.getLogger("deltafan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a client was told.

    :raises ConfigurationError: a router was given, and with it what only a client without one can heed.
    """

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

    def __post_init__(self) -> None:
        if self.router is None:
            return
        unheeded = ["fallbacks"] if self.fallbacks else []
        if isinstance(self.router, Router):
            unheeded += _own(self.model, self.settings)
        if unheeded:
            raise ConfigurationError(f"router: cannot go with {', '.join(unheeded)}, which its deployments have")


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
    transport = SharedTransport(plan.settings)
    embedder = _embedder(plan, transport)
    close: list[Callable[[], Awaitable[None]]] = [transport.aclose]
    cache, told = _cache(plan)
    around: Ring | None = None
    if cache is not None:
        if cache is not plan.cache:
            close.insert(0, cache.aclose)
        embedder = CachedEmbedder(
            embedder,
            cache,
            settings=plan.settings,
            ttl=told.cache_ttl,
            timeout=told.cache_timeout,
            max_bytes=told.cache_max_bytes,
            hook=_warn,
        )

        def around(inner: Completions) -> Cached:
            made = cached(inner, cache, told, plan.settings, _warn)
            close.insert(0, made.aclose)
            return made

    limiter = partial(Limited, limiter=plan.limiter, settings=plan.settings) if plan.limiter is not None else None
    rings = Rings(
        tools=partial(ToolLoop, tools=plan.tools) if plan.tools else None,
        cache=around,
        router=_router(plan, limiter),
        context=partial(ContextCheck, settings=plan.settings),
        retry=partial(Retrying, attempts=plan.attempts, backoff=plan.backoff),
        limiter=limiter,
    )
    return Chain(compose(transport, rings), embedder, close)


def _embedder(plan: Plan, transport: Embedder) -> Embedder:
    if plan.router is not None:
        return _NoEmbeddings()
    if plan.limiter is not None:
        transport = LimitedEmbedder(transport, plan.limiter, plan.settings)
    return RetryingEmbedder(transport, attempts=plan.attempts, backoff=plan.backoff)


class _NoEmbeddings:
    """A router's names stand for completions: no provider would know them."""

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        raise CompletionError("bad_request", f"{request.model}: a router has no embeddings; ask a client without one")


def _cache(plan: Plan) -> tuple[Cache | None, CacheSettings]:
    """The cache, and what is said of it: the defaults, where it is the caller's own."""
    if isinstance(plan.cache, CacheSettings):
        cache = open_cache(plan.cache, folder=plan.cache_folder, redis=plan.redis_url, hook=_warn)
        return cache, plan.cache
    return plan.cache, CacheSettings()


def _router(plan: Plan, limiter: Ring | None) -> Ring | None:
    router = plan.router
    if isinstance(router, Router):
        if limiter is None and plan.attempts == ATTEMPTS:
            return lambda _: router  # which has tries of its own
        # A deployment with its own key has its own tries, too: it waits for the limiter once for all of them.
        return partial(router.using, own=limiter)
    return router or (partial(_falling_back, plan) if plan.fallbacks else None)


def _falling_back(plan: Plan, inner: Completions) -> Router:
    return Router((), completions=inner, unlisted=True, fallbacks={plan.model: plan.fallbacks}, settings=plan.settings)


def _own(model: str, settings: LLMSettings) -> list[str]:
    """What a client was given for its model's provider besides what is configured."""
    provider, _ = split_model(model, settings)
    given, known = (one.providers.get(provider) or ProviderSettings() for one in (settings, load().llm))
    return [name for name in ("api_key", "base_url") if getattr(given, name) != getattr(known, name)]


def _warn(signal: Signal) -> None:
    if signal.level in ("warning", "error"):
        told = ", ".join(f"{name}: {value}" for name, value in signal.fields.items())
        _logger.log(logging.getLevelNamesMapping()[signal.level.upper()], "%s (%s)", signal.name, told)
