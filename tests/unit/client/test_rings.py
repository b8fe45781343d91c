"""The rings that a client puts around its transport, each by what it changes for the caller."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from deltafan.client import OpenAIClient, SyncClient
from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_fault, running
from deltafan.errors import ConfigurationError, ContextWindowExceededError, RateLimitError, ValidationError
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.limits import Budget, Limiter
from deltafan.llm.router import Deployment, Router
from deltafan.llm.tools import tool

Use = Callable[[Provider], None]


async def test_a_cached_answer_is_asked_for_once(environment: Provider, tmp_path: Path) -> None:
    async with OpenAIClient("gpt-5-mini", cache_backend=FsCache(tmp_path)) as client:
        first = await client.invoke("Why?")
        again = await client.invoke("Why?")
        assert (first.cached, again.cached) == (False, True)
        assert again.text == first.text
        assert len(environment.requests) == 1
        assert not (await client.invoke("Why?", rewrite_cache=True)).cached
        assert not (await client.invoke("Why?", identifier="another")).cached
        assert len(environment.requests) == 3
    assert all("identifier" not in request.params for request in environment.requests)


async def test_a_cache_by_name_outlives_the_client(
    environment: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for cached in (False, True):
        async with OpenAIClient("gpt-5-mini", cache_backend="fs") as client:
            assert (await client.invoke("Why?")).cached is cached
            embeddings = await client.embed(["a", "b"])
            assert (embeddings.usage.total_tokens == 0) is cached


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("cache", ["memory", 7, object()])
def test_what_is_no_cache_is_refused(cache: object) -> None:
    with pytest.raises(ValidationError, match=r"^cache_backend: must be one of fs, redis, pg_redis, qdrant"):
        OpenAIClient("gpt-5-mini", cache_backend=cache)  # type: ignore[arg-type]


async def test_every_try_waits_for_the_limiter(use: Use) -> None:
    limiter = Limiter(Budget(requests=2), max_wait=0.0)
    script = Script(source=Text("Hello."), faults=(parse_fault("server_error*1"),))
    async with running(script) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", limiter=limiter, backoff=0.01) as client:
            assert (await client.invoke("Why?")).text == "Hello."  # the second try
            with pytest.raises(RateLimitError):
                await client.invoke("Why?")
        assert len(provider.requests) == 2


async def test_embeddings_wait_for_the_limiter_too(environment: Provider) -> None:
    limiter = Limiter(Budget(requests=1), max_wait=0.0)
    async with OpenAIClient("text-embedding-3-small", limiter=limiter, attempts=1) as client:
        await client.embed("one")
        with pytest.raises(RateLimitError):
            await client.embed("two")
    assert len(environment.requests) == 1


async def test_embeddings_are_charged_what_they_took(environment: Provider) -> None:
    text = "a " * 20  # 20 tokens to the provider, which looks like 10
    async with OpenAIClient(
        "text-embedding-3-small", limiter=Limiter(Budget(tokens=25), max_wait=0.0), attempts=1
    ) as client:
        assert (await client.embed(text)).usage.total_tokens == 20
        with pytest.raises(RateLimitError):
            await client.embed(text)
    assert len(environment.requests) == 1


async def test_a_cache_is_warmed_with_what_it_lacks(environment: Provider, tmp_path: Path) -> None:
    async with OpenAIClient("gpt-5-mini", cache_backend=FsCache(tmp_path)) as client:
        await client.invoke("a")
        warmed = await client.warm_cache(["a", "b", "c"], concurrency=2)
        assert (warmed.cached, warmed.completed, warmed.failed) == (1, 2, [])
        assert (await client.invoke("c")).cached
    assert len(environment.requests) == 3
    async with OpenAIClient("gpt-5-mini") as client:
        with pytest.raises(ConfigurationError, match="cache_backend"):
            await client.warm_cache(["a"])


async def test_a_pydantic_model_is_a_response_format(environment: Provider) -> None:
    class Weather(BaseModel):
        city: str
        degrees: float | None = None

    async with OpenAIClient("gpt-5-mini") as client:
        await client.invoke("How is it?", response_format=Weather)
        with pytest.raises(ValidationError, match="response_format"):
            client.stream("How is it?", response_format=dict)
    sent: Any = environment.requests[-1].params["response_format"]
    assert sent["json_schema"]["name"] == "Weather"
    assert sent["json_schema"]["schema"]["required"] == ["city", "degrees"]
    assert sent["json_schema"]["schema"]["additionalProperties"] is False


async def test_another_model_goes_on_when_one_fails(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Script(faults=(parse_fault("quota"),))) as poor, running(Script()) as provider:
        use(provider)
        monkeypatch.setenv("OPENAI_BASE_URL", poor.base_url)
        async with OpenAIClient("gpt-5-mini", fallbacks=["groq/llama"]) as client:
            result = await client.invoke("Why?")
    assert (result.provider, result.model) == ("groq", "llama")
    assert len(poor.requests) == len(provider.requests) == 1


async def test_an_answer_that_was_begun_anew_is_the_last_ones_alone(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Script(source=Text("Hello there, world."), faults=(parse_fault("cut=2"),))
    async with running(broken) as first, running(Script(source=Text("Good day."))) as second:
        use(second)
        monkeypatch.setenv("OPENAI_BASE_URL", first.base_url)
        async with OpenAIClient("gpt-5-mini", fallbacks=["groq/llama"]) as client:
            result = await client.invoke("Why?")
            frames = "".join([frame async for frame in client.stream_sse("Why?")])
    assert (result.text, result.provider, result.model) == ("Good day.", "groq", "llama")
    assert frames.count("event: meta") == 2
    assert frames.count("event: done") == 1
    assert '"restart":true' in frames


async def test_a_router_chooses_who_is_asked(environment: Provider) -> None:
    async with OpenAIClient(
        "fast", router=lambda inner: Router([Deployment("groq/llama", name="fast")], completions=inner)
    ) as client:
        result = await client.invoke("Why?")
    assert (result.provider, result.model) == ("groq", "llama")
    assert environment.requests[-1].params["model"] == "llama"


async def test_tools_are_run_and_their_results_told(use: Use) -> None:
    asked = []

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "sunny"

    script = Script(source=Text("It is sunny."), tool_calls=(ToolCall("weather", '{"city": "Oslo"}'),))
    async with running(script) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", tools=[weather]) as client:
            result = await client.invoke("How is it in Oslo?")
    assert asked == ["Oslo"]
    assert [found.result for found in result.tool_results] == ["sunny"]
    assert result.finish_reason == "stop"
    assert len(provider.requests) == 2


async def test_a_prompt_that_is_too_long_is_not_sent(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        with pytest.raises(ContextWindowExceededError, match=r"context window|takes"):
            await client.invoke("word " * 500_000)
        assert environment.requests == []


async def test_the_responses_api_gives_the_same(use: Use) -> None:
    async with running(Script(source=Text("Hello there."))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", api="responses") as client:
            for stream in (True, False):
                result = await client.invoke("Why?", stream=stream)
                assert result.text == "Hello there."
                assert result.usage.source == "reported"
                assert result.response_id
            listed = await client.invoke(input=[{"role": "user", "content": "Why?"}])
            assert listed.text == "Hello there."


async def test_vectors_come_in_order(environment: Provider) -> None:
    async with OpenAIClient("text-embedding-3-small") as client:
        both = await client.embed(["one", "two"])
        alone = [(await client.embed(text)).vectors[0] for text in ("one", "two")]
    assert both.vectors == alone
    assert alone[0] != alone[1]
    assert (both.provider, both.usage.source) == ("openai", "reported")
    assert both.usage.total_tokens


async def test_vectors_may_be_an_array(environment: Provider) -> None:
    import numpy

    async with OpenAIClient("text-embedding-3-small") as client:
        lists = await client.embed(["one", "two"], dimensions=8)
        array = await client.embed(["one", "two"], dimensions=8, as_array=True)
    assert isinstance(array.vectors, numpy.ndarray)
    assert array.vectors.shape == (2, 8)
    assert numpy.allclose(array.vectors, lists.vectors)


async def test_an_array_without_numpy_says_what_to_install(
    environment: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    async with OpenAIClient("text-embedding-3-small") as client:
        with pytest.raises(ConfigurationError, match=r"pip install 'deltafan\[numpy\]'"):
            await client.embed("one", as_array=True)
    assert environment.requests == []


async def test_plain_code_embeds_too(environment: Provider) -> None:
    def work() -> int:
        with SyncClient("text-embedding-3-small") as client:
            return len(client.embed(["a", "b", "c"]).vectors)

    assert await asyncio.to_thread(work) == 3


async def test_one_limiter_for_a_loop_and_a_sync_client_is_refused_with_what_to_do(environment: Provider) -> None:
    limiter = Limiter(Budget(requests=100))
    async with OpenAIClient("gpt-5-mini", limiter=limiter) as client:
        await client.invoke("Why?")

    def work() -> None:
        refused = pytest.raises(ConfigurationError, match=r"^limiter: .* give each loop a limiter")
        with SyncClient("gpt-5-mini", limiter=limiter) as client, refused:
            client.invoke("Why?", raise_on_error=False)

    await asyncio.to_thread(work)
