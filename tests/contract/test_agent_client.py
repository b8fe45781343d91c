"""`AgentRunner` around the real client and a scripted provider."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import orjson
import pytest

from deltafan.client import OpenAIClient
from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_faults, running
from deltafan.errors import AuthenticationError
from deltafan.events import Done, ToolResult, Usage
from deltafan.llm.agent import AgentRunner, Step
from deltafan.llm.seam import Started
from deltafan.llm.tools import tool

KEY = "sk-test-0123456789abcdef"


@tool
async def weather(city: str) -> dict[str, object]:
    """The weather of a city."""
    return {"city": city, "degrees": 21}


@tool
def add(a: int, b: int = 1) -> int:
    """A sum."""
    return a + b


def client(provider: Provider, **options: object) -> OpenAIClient:
    return OpenAIClient("openai/gpt-5-mini", api_key=KEY, base_url=provider.base_url, **options)  # type: ignore[arg-type]


SCRIPT = Script(
    source=Text("Warm enough."),
    tool_calls=(ToolCall("weather", '{"city": "Oslo"}'), ToolCall("add", '{"a": 2, "b": null}'), ToolCall("rocket")),
)


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_run_ends_with_the_answer_what_it_cost_and_a_conversation_to_go_on_with(api: str) -> None:
    async with running(SCRIPT) as provider, client(provider, api=api) as opened:
        runner = AgentRunner(opened, [weather, add])
        result = await runner.run("How warm is it in Oslo?", temperature=0)
        again = await runner.run([*result.messages, {"role": "user", "content": "Sure?"}])
    assert (result.text, result.finish_reason, result.iterations) == ("Warm enough.", "stop", 2)
    assert result.usage.source == "reported"
    assert result.cost_usd is not None
    assert result.cost_usd > 0
    by_name = {made.name: made for made in result.tool_results}
    assert by_name["weather"].result == {"city": "Oslo", "degrees": 21}
    assert by_name["add"].result == 3
    assert by_name["rocket"].error == "there is no tool 'rocket'; there is: weather, add"
    roles = [message["role"] for message in result.messages]
    assert roles == ["user", "assistant", "tool", "tool", "tool", "assistant"]
    assert orjson.loads(result.messages[2]["content"]) == by_name["weather"].result
    assert again.text == "Warm enough."
    assert len(again.messages) == len(result.messages) + 5 + 1


async def test_a_stream_has_every_event() -> None:
    async with (
        running(SCRIPT) as provider,
        client(provider) as opened,
        aclosing(AgentRunner(opened, [weather, add]).stream("How warm is it?")) as stream,
    ):
        events = [event async for event in stream]
    assert [event.iteration for event in events if isinstance(event, Step)] == [1, 2]
    assert sum(isinstance(event, Started) for event in events) == 2
    assert sum(isinstance(event, ToolResult) for event in events) == 3
    assert [type(event) for event in events[-2:]] == [Usage, Done]


async def test_a_provider_that_refuses_fails_the_run() -> None:
    async with running(Script(faults=parse_faults("authentication"))) as provider, client(provider) as opened:
        with pytest.raises(AuthenticationError):
            await AgentRunner(opened, [weather]).run("x")


async def test_cancelling_a_run_cancels_its_tool() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with running(Script(tool_calls=(ToolCall("endless"),))) as provider, client(provider) as opened:
        task = asyncio.create_task(AgentRunner(opened, [endless]).run("x"))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert stopped.is_set()
    assert task.cancelled()


async def test_the_limit_of_iterations_is_told() -> None:
    async with running(SCRIPT) as provider, client(provider) as opened:
        runner = AgentRunner(opened, [weather, add], 1)
        result = await runner.run("x", timeout=30)
    assert result.finish_reason == "max_iterations"
    assert [made.error for made in result.tool_results] == ["not run: the limit of iterations is reached (1)"] * 3
