"""The rings that a worker's settings put around its models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deltafan.engine.services import Services
from deltafan.events import Done, Event, TextDelta, Usage
from deltafan.job import JobSpec
from deltafan.llm import Completions, Request, Started
from deltafan.llm.router import Deployment, Router
from deltafan.models import open_models
from deltafan.telemetry.hooks import silent
from deltafan.wiring import load

SPEC = JobSpec(model="fast", prompt="Hi")
REQUEST = Request(model="fast", messages=[{"role": "user", "content": "Hi"}])


class Echo:
    """Answers with the model that it was asked for."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        yield Started(provider="openai", model=request.model)
        yield TextDelta(request.model)
        yield Usage(1, 1, 2)
        yield Done("stop")


async def test_a_worker_whose_routes_changed_does_not_find_what_the_old_ones_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAFAN_CACHE_BACKEND", "fs")
    monkeypatch.setenv("DELTAFAN_CACHE_DIR", str(tmp_path))
    configuration = load()
    redis = Redis()  # nothing connects it
    answers = []
    for model in ("openai/gpt-5", "openai/gpt-5", "openai/gpt-5-mini"):

        def routes(models: Completions, model: str = model) -> Router:
            return Router([Deployment(model, name="fast")], completions=models)

        async with open_models(Echo(), configuration, redis, silent, routes) as (models, around):
            completions = Services(models, around=around).completions_for(SPEC)
            async with aclosing(completions.stream(REQUEST)) as stream:
                events = [event async for event in stream]
        started = next(event for event in events if isinstance(event, Started))
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        answers.append((text, started.cached))
    await redis.aclose()
    assert answers == [("openai/gpt-5", False), ("openai/gpt-5", True), ("openai/gpt-5-mini", False)]
