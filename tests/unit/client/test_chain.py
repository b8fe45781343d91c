"""The order of a client's rings, and what they know of each other."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from deltafan.client import OpenAIClient
from deltafan.client.router import Router
from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_fault, running
from deltafan.errors import BadRequestError, CompletionError, ConfigurationError, RateLimitError
from deltafan.events import Event
from deltafan.llm import Request, router
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.limits import Budget, Limiter
from deltafan.llm.router import Deployment
from deltafan.llm.tools import tool
from tests.unit.client.conftest import KEY
from tests.unit.client.test_router import listed

Use = Callable[[Provider], None]


class Down:
    """A cache that is."""

    async def get(self, key: str) -> bytes | None:
        raise ConnectionError("nobody there")

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        raise ConnectionError("nobody there")

    async def delete(self, key: str) -> None:
        raise ConnectionError("nobody there")

    async def aclose(self) -> None:
        pass


async def test_tools_run_every_time_and_their_turns_are_cached(use: Use, tmp_path: Path) -> None:
    sent = []

    @tool
    def send(to: str) -> str:
        """Send a letter."""
        sent.append(to)
        return "sent"

    script = Script(source=Text("Done."), tool_calls=(ToolCall("send", '{"to": "Ann"}'),))
    async with running(script) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", tools=[send], cache_backend=FsCache(tmp_path)) as client:
            for _ in range(2):
                assert (await client.invoke("Write to Ann.")).text == "Done."
        assert sent == ["Ann", "Ann"]
        assert len(provider.requests) == 2, "the second call's turns were stored"
        async with OpenAIClient("gpt-5-mini", cache_backend=FsCache(tmp_path)) as client:
            result = await client.invoke("Write to Ann.")
        assert not result.cached, "a request without tools is another"
        assert result.tool_results == ()


async def test_a_name_in_another_router_is_another_entry(use: Use, tmp_path: Path) -> None:
    async with running(Script(source=Text("A"))) as first, running(Script(source=Text("B"))) as second:
        use(first)
        for provider, text in ((first, "A"), (second, "B")):
            routes = Router([listed("fast", provider)])
            async with OpenAIClient("fast", router=routes, cache_backend=FsCache(tmp_path)) as client:
                found = [await client.invoke("Hi") for _ in range(2)]
            assert [(one.text, one.cached) for one in found] == [(text, False), (text, True)]
            await routes.aclose()


@pytest.mark.usefixtures("environment")
def test_a_digest_is_of_the_places_and_not_of_the_router() -> None:
    class Own:
        def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            raise NotImplementedError

    def digest(*deployments: Deployment) -> str:
        return router.Router(deployments, completions=Own()).digest

    one, two = Deployment("groq/llama", name="fast"), Deployment("openai/gpt-5", name="fast")
    assert digest(one, two) == digest(two, one)
    assert len({digest(one), digest(two), digest(one, two), digest()}) == 4
    placed = [Deployment("a", completions=Own(), base_url=url) for url in ("http://a/v1", "http://a/v1/", "http://b")]
    assert digest(placed[0]) == digest(placed[1]) != digest(placed[2])
    assert digest(Deployment("a", completions=Own())) != digest(Deployment("a", completions=Own())), "who knows"


async def test_a_fallbacks_answer_is_not_stored_as_the_models(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Script(source=Text("The model."), faults=(parse_fault("quota*1"),))
    async with running(broken) as first, running(Script(source=Text("The fallback."))) as second:
        use(second)
        monkeypatch.setenv("OPENAI_BASE_URL", first.base_url)
        async with OpenAIClient("gpt-5-mini", fallbacks=["groq/llama"], cache_backend=FsCache(tmp_path)) as client:
            assert (await client.invoke("Hi")).text == "The fallback."
        async with OpenAIClient("gpt-5-mini", fallbacks=["groq/llama"], cache_backend=FsCache(tmp_path)) as client:
            found = [await client.invoke("Hi") for _ in range(2)]
        assert [(one.text, one.cached) for one in found] == [("The model.", False), ("The model.", True)]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "given",
    [{"fallbacks": ["openai/gpt-5"]}, {"api_key": "another"}, {"base_url": "http://127.0.0.1:1/v1"}],
)
def test_what_a_router_would_not_heed_is_refused_with_one(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"^router: .*{next(iter(given))}"):
        OpenAIClient("openai/gpt-5-mini", router=Router(["openai/gpt-5-mini"]), **given)


@pytest.mark.parametrize("own", [False, True])
async def test_a_routers_deployments_wait_for_the_limiter(environment: Provider, own: bool) -> None:
    routes = Router([listed("fast", environment) if own else Deployment("openai/gpt-5-mini", name="fast")])
    limiter = Limiter(Budget(requests=1), max_wait=0.0)
    async with OpenAIClient("fast", router=routes, limiter=limiter, attempts=1) as client:
        await client.invoke("Hi")
        with pytest.raises(RateLimitError):
            await client.invoke("Hi")
    assert len(environment.requests) == 1
    await routes.aclose()


async def test_a_routers_deployments_are_tried_as_often_as_the_client_says(use: Use) -> None:
    async with running(Script(faults=(parse_fault("server_error"),))) as provider:
        use(provider)
        routes = Router(["openai/gpt-5-mini"], num_retries=0)
        async with OpenAIClient("openai/gpt-5-mini", router=routes, attempts=4, backoff=0.001) as client:
            with pytest.raises(CompletionError):
                await client.invoke("Hi")
        assert len(provider.requests) == 4
        await routes.aclose()


async def test_embeddings_do_not_go_around_a_router(environment: Provider) -> None:
    async with OpenAIClient("fast", router=Router([Deployment("groq/llama", name="fast")])) as client:
        with pytest.raises(BadRequestError, match="router"):
            await client.embed("a")
    assert environment.requests == []


async def test_a_cache_that_is_down_warns_and_nothing_secret_is_said(
    environment: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="deltafan"):
        async with OpenAIClient("gpt-5-mini", cache_backend=Down()) as client:
            assert (await client.invoke("Hi")).text
    assert [(one.name, one.levelno) for one in caplog.records if one.name.startswith("deltafan")] == [
        ("deltafan", logging.WARNING)
    ]
    assert "cache.unavailable (reason: nobody there" in caplog.text
    assert KEY not in caplog.text
    assert len(environment.requests) == 1
