"""The models as a worker asks them: the rings that its settings put around the transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from deltafan.llm import Completions, LLMSettings, Retrying
from deltafan.llm.cache import Cached
from deltafan.llm.cache.around import cached
from deltafan.llm.cache.backends import open_cache
from deltafan.llm.compose import Ring, Rings, compose
from deltafan.llm.context import ContextCheck
from deltafan.llm.limits import Budget, Limited, Limiter
from deltafan.llm.limits.settings import LimitSettings
from deltafan.llm.limits.shared import in_redis
from deltafan.llm.profiles import find_profile
from deltafan.llm.router import Router
from deltafan.telemetry.hooks import Hook
from deltafan.wiring import Configuration

Routes = Callable[[Completions], Router]
"""Makes an operator's router of what takes any `provider/model`."""


@asynccontextmanager
async def open_models(
    transport: Completions, configuration: Configuration, redis: Redis, hook: Hook, routes: Routes | None = None
) -> AsyncIterator[tuple[Completions, Ring | None]]:
    """The models, and the ring that goes around their router: the cache, if there is one.

    :param redis: the queue's: limits that workers share are kept there.
    """
    async with AsyncExitStack() as opened:
        limiter = _limiter(configuration.limit, configuration.llm, redis)
        if limiter is not None:
            await opened.enter_async_context(limiter)
        models = compose(
            transport,
            Rings(
                context=partial(ContextCheck, settings=configuration.llm),
                retry=Retrying,
                limiter=None if limiter is None else partial(Limited, limiter=limiter, settings=configuration.llm),
            ),
        )
        yield (routes(models) if routes else models), await _cache(opened, configuration, hook)


def _limiter(settings: LimitSettings, llm: LLMSettings, redis: Redis) -> Limiter | None:
    if settings.limits == "off":
        return None

    def budget(model: str) -> Budget | None:
        profile = find_profile(model, llm)
        requests = settings.requests_per_minute or profile.requests_per_minute
        tokens = settings.tokens_per_minute or profile.tokens_per_minute
        return Budget(requests, tokens) if requests or tokens else None

    stores = in_redis(redis) if settings.limits == "shared" else None
    return Limiter(budget, stores=stores, max_wait=settings.limit_wait)


async def _cache(opened: AsyncExitStack, configuration: Configuration, hook: Hook) -> Ring | None:
    settings = configuration.cache
    cache = open_cache(settings, folder=configuration.cache_folder, redis=configuration.redis.url, hook=hook)
    if cache is None:
        return None
    opened.push_async_callback(cache.aclose)

    def ring(inner: Completions) -> Cached:
        made = cached(inner, cache, settings, configuration.llm, hook)
        opened.push_async_callback(made.aclose)  # before the cache
        return made

    return ring
