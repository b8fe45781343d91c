"""`Router` as programs use it, in our own shape and in litellm's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deltafan.client import OpenAIClient
from deltafan.client.router import Router
from deltafan.devserver.provider import Provider, Script, Text, parse_fault, running
from deltafan.errors import ConfigurationError, InternalServerError, NotFoundError, RateLimitError, ValidationError
from deltafan.llm.router import Deployment, Rules
from tests.unit.client.conftest import KEY

Use = Callable[[Provider], None]


def listed(name: str, provider: Provider, **more: Any) -> dict[str, Any]:
    params = {"model": "openai/gpt-5-mini", "api_key": KEY, "api_base": provider.base_url}
    return {"model_name": name, "litellm_params": params | more}


async def test_litellms_model_list_is_understood(use: Use) -> None:
    async with (
        running(Script(faults=(parse_fault("rate_limit=30"),))) as busy,
        running(Script(source=Text("Hello."))) as free,
    ):
        use(free)
        router = Router(
            model_list=[listed("fast", busy, weight=1), listed("fast", free, weight=1)],
            num_retries=0,
            routing_strategy="simple-shuffle",
        )
        for _ in range(4):
            answer = await router.acompletion(model="fast", messages=[{"role": "user", "content": "Hi"}])
            assert answer.choices[0].message.content == "Hello."
        chunks = [chunk async for chunk in await router.acompletion("fast", "Hi", stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."
        assert len(busy.requests) <= 1  # it asked for a pause, and has it, over all calls
        await router.aclose()


async def test_fallbacks_may_be_a_list_of_mappings(use: Use) -> None:
    async with running(Script(faults=(parse_fault("quota"),))) as poor, running(Script(source=Text("Hello."))) as rich:
        use(rich)
        router = Router([listed("cheap", poor), Deployment("groq/llama", name="dear")], fallbacks=[{"cheap": ["dear"]}])
        answer = await router.acompletion("cheap", "Hi")
        assert answer.model == "llama"
        with pytest.raises(RateLimitError):
            await Router([listed("cheap", poor)], num_retries=0).acompletion("cheap", "Hi")
        await router.aclose()


async def test_a_client_and_plain_code_may_use_it(environment: Provider) -> None:
    router = Router(["openai/gpt-5-mini", Deployment("groq/llama", name="fast")])
    async with OpenAIClient("fast", router=router) as client:
        assert (await client.invoke("Hi")).provider == "groq"
    answer = await asyncio.to_thread(router.completion, "fast", "Hi")
    assert answer.model == "llama"
    chunks = await asyncio.to_thread(router.completion, "openai/gpt-5-mini", "Hi", stream=True)
    assert {chunk.model for chunk in await asyncio.to_thread(list, chunks)} == {"gpt-5-mini"}
    await router.aclose()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"strategy": "random"}, "strategy"),
        ({"num_retries": -1}, "num_retries"),
        ({"deployments": [7]}, "deployments"),
        ({"model_list": [{"model_name": "a", "litellm_params": {}}]}, "litellm_params"),
        ({"model_list": [{"model_name": "a", "litellm_params": {"model": "b", "wat": 1}}]}, "litellm_params"),
        (
            {"model_list": [{"model_name": "a", "litellm_params": {"model": "b", "mock_response": "c"}}]},
            "litellm_params",
        ),
        ({"model_list": [{"model_name": "a", "litellm_params": {"model": "b", "timeout": -1}}]}, "litellm_params"),
        (
            {"model_list": [{"model_name": "a", "litellm_params": {"model": "b", "response_format": int}}]},
            "litellm_params",
        ),
        ({"deployments": ["a"], "allowed_fails": -1}, "allowed_fails"),
        ({"deployments": ["a"], "cooldown_time": "x"}, "cooldown_time"),
        ({"deployments": ["a"], "cooldown_time": 3, "rules": Rules()}, "rules"),
        ({"deployments": ["a"], "fallbacks": 7}, "fallbacks"),
        ({"deployments": ["a"], "fallbacks": {"a": ["unheard-of"]}}, "fallbacks"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field}: "):
        Router(**arguments)


@pytest.mark.parametrize(
    ("fault", "argument"),
    [("context_length", "context_window_fallbacks"), ("content_filter=0", "content_policy_fallbacks")],
)
async def test_litellms_names_of_special_fallbacks_are_taken(use: Use, fault: str, argument: str) -> None:
    async with running(Script(faults=(parse_fault(fault),))) as short, running(Script(source=Text("Hello."))) as long:
        use(long)
        models = [listed("short", short), listed("long", long)]
        fallbacks: dict[str, Any] = {argument: [{"short": ["long"]}]}
        answer = await Router(model_list=models, **fallbacks).acompletion("short", "Hi")
        assert answer.choices[0].message.content == "Hello."


async def test_a_deployments_parameters_are_the_defaults_of_its_calls(environment: Provider) -> None:
    router = Router([listed("fast", environment, temperature=0.5, max_tokens=7)])
    await router.acompletion("fast", "Hi")
    sent = environment.requests[-1].params
    assert (sent["temperature"], sent["max_completion_tokens"]) == (0.5, 7)  # as this model wants it named
    await router.acompletion("fast", "Hi", temperature=1, max_completion_tokens=3)
    sent = environment.requests[-1].params
    assert (sent["temperature"], sent["max_completion_tokens"], "max_tokens" in sent) == (1, 3, False)
    await router.aclose()


async def test_a_deployment_that_is_slower_than_its_own_limit_is_passed_over(use: Use) -> None:
    async with (
        running(Script(faults=(parse_fault("slow_headers=30"),))) as slow,
        running(Script(source=Text("Hello."))) as quick,
    ):
        use(quick)
        router = Router([listed("slow", slow, timeout=0.1), listed("quick", quick)], fallbacks={"slow": ["quick"]})
        answer = await router.acompletion("slow", "Hi")
        assert answer.choices[0].message.content == "Hello."
        assert len(slow.requests) >= 1
        await router.aclose()


async def test_embeddings_go_over_to_others(use: Use) -> None:
    async with running(Script(faults=(parse_fault("rate_limit"),))) as busy, running(Script()) as free:
        use(free)
        models = [listed("near", busy), listed("far", free)]
        for one in models:
            one["litellm_params"]["model"] = "openai/text-embedding-3-small"
        router = Router(model_list=models, num_retries=0, fallbacks=[{"near": ["far"]}])
        answer = await router.aembedding("near", input=["a", "b"])
        assert (len(answer.data), len(busy.requests), len(free.requests)) == (2, 1, 1)
        again = await asyncio.to_thread(router.embedding, model="far", input="a")
        assert len(again.data) == 1
        with pytest.raises(RateLimitError):
            await Router(model_list=models[:1], num_retries=0).aembedding("near", "a")
        with pytest.raises(NotFoundError):
            await router.aembedding("nowhere", "a")
        await router.aclose()


async def test_litellms_rules_of_cooldown_are_kept(use: Use) -> None:
    async with running(Script(faults=(parse_fault("server_error"),))) as broken:
        use(broken)
        router = Router([listed("one", broken)], num_retries=0, allowed_fails=1, cooldown_time=60)
        for cooling in (False, True):
            with pytest.raises(InternalServerError):
                await router.acompletion("one", "Hi")
            assert (router.status()[0].cooling > 30) is cooling
        await router.aclose()


async def test_a_call_may_bring_its_fallbacks_but_no_key(use: Use) -> None:
    async with running(Script(faults=(parse_fault("quota"),))) as poor, running(Script(source=Text("Hello."))) as rich:
        use(rich)
        router = Router([listed("cheap", poor), listed("dear", rich)], num_retries=0)
        answer = await router.acompletion("cheap", "Hi", fallbacks=[{"model": "dear"}])
        assert answer.choices[0].message.content == "Hello."
        with pytest.raises(NotFoundError, match="nowhere"):
            await router.acompletion("cheap", "Hi", fallbacks=["nowhere"])
        for call in (router.acompletion, router.aembedding):
            with pytest.raises(ValidationError, match=r"^api_key: "):
                await call("cheap", "Hi", api_key="sk-mine")
        await router.aclose()
