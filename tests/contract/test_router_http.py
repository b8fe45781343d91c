"""The router over real clients and scripted providers with their faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_faults, running
from deltafan.errors import CompletionError
from deltafan.events import Done, Event, Meta, TextDelta, Usage
from deltafan.llm import LLMSettings, ProviderSettings, Request, Retrying
from deltafan.llm.agent import AgentRunner
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.router import Deployment, Failover, MidStream, Router
from deltafan.llm.seam import Started
from deltafan.llm.tools import tool
from deltafan.transcript import Transcript

TEXT = "Ελλάδα, 日本語 and a flag 🏳️‍🌈, as the model says it. " * 3
GOOD = Script(source=Text(TEXT), chunk_size=3)
REQUEST = Request("m", [{"role": "user", "content": "Hi"}], first_token_timeout=10.0)


def faulty(faults: str, **more: object) -> Script:
    return Script(source=Text(TEXT), chunk_size=3, faults=parse_faults(faults), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def routed(
    *scripts: Script, mid_stream: MidStream = "restart", told: list[Failover] | None = None
) -> AsyncIterator[tuple[Router, list[Provider]]]:
    """A router for `m` over a provider of each script, in this order; `vllm` is the last, which takes a prefill."""
    names = [*(f"p{place}" for place in range(len(scripts) - 1)), "vllm"]
    providers: list[Provider] = []

    @asynccontextmanager
    async def all_running(left: tuple[Script, ...]) -> AsyncIterator[None]:
        if not left:
            yield
            return
        async with running(left[0]) as provider:
            providers.append(provider)
            async with all_running(left[1:]):
                yield

    async with all_running(scripts):
        settings = LLMSettings(
            providers={
                name: ProviderSettings(base_url=provider.base_url, api_key="sk-test-0123456789abcdef")
                for name, provider in zip(names, providers, strict=True)
            }
        )
        async with OpenAICompletions(settings) as client:
            yield (
                Router(
                    [
                        Deployment(f"{name}/gpt", "m", weight=0.0 if place else 1.0, id=name)
                        for place, name in enumerate(names)
                    ],
                    completions=Retrying(client, attempts=2, backoff=0.001),
                    settings=settings,
                    mid_stream=mid_stream,
                    on_failover=None if told is None else told.append,
                ),
                providers,
            )


async def collect(router: Router, request: Request = REQUEST) -> list[Event]:
    async with aclosing(router.stream(request)) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript.text


@pytest.mark.parametrize(
    ("faults", "code", "requests"),
    [
        ("rate_limit=60", "rate_limit", 1),
        ("quota", "quota", 1),
        ("server_error=503", "server_error", 2),
        ("authentication", "authentication", 1),
        ("permission", "permission", 1),
        ("model_not_found", "model_not_found", 1),
        ("cut=0", "connection", 2),
        ("close=0", "malformed_stream", 2),
        ("malformed=1", "malformed_stream", 2),
        ("error=0", "server_error", 2),
    ],
)
async def test_a_fault_before_the_first_delta_is_never_seen(faults: str, code: str, requests: int) -> None:
    told: list[Failover] = []
    async with routed(faulty(faults), GOOD, told=told) as (router, providers):
        events = await collect(router)
    assert text_of(events) == TEXT
    assert [one.error.code for one in told] == [code]
    assert [len(provider.requests) for provider in providers] == [requests, 1]
    assert not any(isinstance(event, Meta) for event in events)
    assert [event.deployment for event in events if isinstance(event, Started)] == ["vllm"]
    assert [type(event) for event in events[-2:]] == [Usage, Done]


async def test_a_provider_that_says_nothing_is_left_for_another() -> None:
    request = Request("m", REQUEST.messages, first_token_timeout=0.2)
    async with routed(faulty("stall=0*2"), GOOD) as (router, _):
        assert text_of(await collect(router, request)) == TEXT


async def test_a_request_that_is_wrong_is_told_at_once() -> None:
    async with routed(faulty("bad_request"), GOOD) as (router, providers):
        with pytest.raises(CompletionError) as caught:
            await collect(router)
        assert (caught.value.code, len(providers[1].requests)) == ("bad_request", 0)


@pytest.mark.parametrize("faults", ["cut=6", "close=6", "malformed=7", "error=6"])
@pytest.mark.parametrize(("policy", "flags"), [("restart", (True, False)), ("continue", (False, True))])
async def test_a_fault_in_mid_stream_is_told_and_the_text_comes_out_right(
    faults: str, policy: MidStream, flags: tuple[bool, bool]
) -> None:
    async with routed(faulty(faults), GOOD, mid_stream=policy) as (router, providers):
        events = await collect(router)
    assert text_of(events) == TEXT
    [meta] = [event for event in events if isinstance(event, Meta)]
    assert (meta.restart, meta.continued, meta.provider) == (*flags, "vllm")
    assert any(isinstance(event, TextDelta) for event in events[: events.index(meta)])
    assert [len(provider.requests) for provider in providers] == [1, 1]
    [used] = [event for event in events if isinstance(event, Usage)]
    assert used.source == "estimated", "what the broken answer took was not reported"


async def test_each_turn_of_an_agent_may_be_answered_by_another() -> None:
    def lucky() -> int:
        """A number."""
        return 7

    calls = (ToolCall("lucky"),)
    broken = faulty("cut=6", tool_calls=calls)
    good = Script(source=Text(TEXT), chunk_size=3, tool_calls=calls)
    async with routed(broken, good) as (router, _):
        runner = AgentRunner(router, [tool(lucky)], model="m")
        result = await runner.run("Hi")
        async with aclosing(runner.stream("Hi")) as stream:
            events = [event async for event in stream]
    assert (result.text, result.iterations) == (TEXT, 2)
    assert [made.result for made in result.tool_results] == [7]
    assert [message["role"] for message in result.messages] == ["user", "assistant", "tool", "assistant"]
    seen = Transcript()
    for event in events:
        seen.add(event)
    assert [made.result for made in seen.tool_results] == [7]
    assert [made.name for made in seen.tool_calls] == ["lucky"]
