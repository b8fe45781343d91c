"""The client against a real provider on loopback, with its faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from deltafan.client import OpenAIClient
from deltafan.client.transports import _open
from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_fault, running
from deltafan.errors import (
    APIConnectionError,
    AuthenticationError,
    ContextWindowExceededError,
    RateLimitError,
    ServiceUnavailableError,
    Timeout,
    ValidationError,
)
from deltafan.events import Done, TextDelta, Usage
from deltafan.llm.profiles import GPT5Mini
from tests.unit.client.conftest import running_elsewhere

Use = Callable[[Provider], None]


def faulty(fault: str, **more: Any) -> Script:
    return Script(source=Text("Hello there, world."), faults=(parse_fault(fault),), **more)


async def test_a_string_is_one_message_of_the_user(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        events = [event async for event in client.stream("Why?")]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == environment.requests[-1].text
    assert [type(e) for e in events[-2:]] == [Usage, Done]
    assert all(e.type != "started" for e in events)


async def test_messages_of_the_sdks_own_types_are_taken(use: Use) -> None:
    from openai.types.chat import ChatCompletionMessage

    async with running(Script()) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            said = ChatCompletionMessage(role="assistant", content="Before.")
            await client.invoke([{"role": "user", "content": "A"}, said, {"role": "user", "content": "B"}])
        assert provider.requests[-1].params["model"] == "gpt-5-mini"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "messages"),
        ({"messages": "a", "input": "b"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": 7}, "messages"),
        ({"messages": ["a"]}, r"messages\[0\]"),
        ({"messages": "a", "model": "other"}, "model"),
        ({"messages": "a", "api_key": "k"}, "api_key"),
        ({"messages": "a", "timeout": -1}, "timeout"),
        ({"messages": "a", "stream": "yes"}, "stream"),
        ({"messages": "a", "extra_body": []}, "extra_body"),
    ],
)
async def test_a_wrong_argument_is_named_at_once(environment: Provider, arguments: dict[str, Any], field: str) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        with pytest.raises(ValidationError, match=f"^{field}: "):
            client.stream(**arguments)
    assert environment.requests == []


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"api": "assistants"}, "api"),
        ({"attempts": 0}, "attempts"),
        ({"timeout": 0}, "timeout"),
        ({"base_url": "example.com"}, "base_url"),
    ],
)
def test_a_wrong_setting_of_the_client_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"^{field}: "):
        OpenAIClient(**({"model": "gpt-5-mini"} | arguments))


async def test_a_result_holds_the_whole_answer(use: Use) -> None:
    script = Script(
        source=Text("The answer."), reasoning="Let me think.", tool_calls=(ToolCall("look", '{"at": "sky"}'),)
    )
    async with running(script) as provider:
        use(provider)
        async with OpenAIClient("openai/gpt-5-mini") as client:
            result = await client.invoke("Why?", temperature=0.5)
    assert (result.text, result.reasoning, result.refusal) == ("The answer.", "Let me think.", "")
    assert [(call.name, json.loads(call.arguments)) for call in result.tool_calls] == [("look", {"at": "sky"})]
    assert result.finish_reason == "tool_calls"
    assert result.usage.source == "reported"
    assert result.usage.cost_usd is not None
    assert result.usage.cost_usd > 0
    assert (result.provider, result.model, result.error, result.cached) == ("openai", "gpt-5-mini", None, False)
    assert result.time_to_first_token is not None
    assert 0 < result.time_to_first_token <= result.response_time
    assert provider.requests[-1].params["temperature"] == 0.5
    with pytest.raises(AttributeError):
        result.text = "changed"  # type: ignore[misc]


async def test_a_refusal_is_no_text(use: Use) -> None:
    async with running(Script(refusal="I would rather not.")) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            result = await client.invoke("Why?")
    assert (result.text, result.refusal) == ("", "I would rather not.")
    assert result.choices[0].refusal == result.refusal


async def test_several_choices_come_as_several(use: Use) -> None:
    async with running(Script()) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            result = await client.invoke("Why?", n=3)
    assert [choice.index for choice in result.choices] == [0, 1, 2]
    assert all(choice.text for choice in result.choices)
    assert result.choices[0].text == result.text


async def test_a_failure_is_raised_as_what_it_is(use: Use) -> None:
    kinds = {
        "authentication": (AuthenticationError, 401),
        "context_length": (ContextWindowExceededError, 400),
        "rate_limit": (RateLimitError, 429),
        "server_error=503": (ServiceUnavailableError, 503),
    }
    for fault, (kind, status) in kinds.items():
        async with running(faulty(fault)) as provider:
            use(provider)
            async with OpenAIClient("gpt-5-mini", attempts=1) as client:
                with pytest.raises(kind) as caught:
                    await client.invoke("Why?")
        error = caught.value
        assert (error.status, error.status_code) == (status, status)
        assert (error.provider, error.llm_provider, error.model) == ("openai", "openai", "gpt-5-mini")


async def test_a_failure_may_be_a_result_with_what_had_come(use: Use) -> None:
    async with running(faulty("cut=2", chunk_size=3)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            result = await client.invoke("Why?", raise_on_error=False)
    assert result.text == "Hello "
    assert isinstance(result.error, APIConnectionError)
    assert result.finish_reason == "error"


async def test_a_failed_attempt_is_repeated_while_nothing_was_seen(use: Use) -> None:
    async with running(faulty("server_error*2")) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", attempts=3, backoff=0.01) as client:
            assert (await client.invoke("Why?")).text == "Hello there, world."
        assert len(provider.requests) == 3


async def test_attempts_bound_how_often_it_is_tried(use: Use) -> None:
    async with running(faulty("server_error")) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", attempts=2, backoff=0.01) as client:
            with pytest.raises(ServiceUnavailableError):
                await client.invoke("Why?")
        assert len(provider.requests) == 2


@pytest.mark.parametrize(
    ("fault", "limit", "code"),
    [
        ("slow_headers=30", "first_token_timeout", "timeout_first_token"),
        ("stall=2", "stall_timeout", "timeout_stall"),
        ("stall=2", "timeout", "timeout_total"),
    ],
)
async def test_time_limits_hold_for_the_client_and_for_a_call(use: Use, fault: str, limit: str, code: str) -> None:
    async with running(faulty(fault)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini", attempts=1, **{limit: 0.05}) as client:  # type: ignore[arg-type]
            with pytest.raises(Timeout) as caught:
                await client.invoke("Why?")
        assert caught.value.code == code
        async with OpenAIClient("gpt-5-mini", attempts=1) as client:
            with pytest.raises(Timeout) as caught:
                await client.invoke("Why?", **{limit: 0.05})
        assert caught.value.code == code


async def test_a_response_is_plain_data(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        response = await client.get_response("Why?", temperature=0, identifier="row-7")
    assert json.loads(json.dumps(response)) == response
    assert response["output"] == environment.requests[-1].text
    assert (response["status"], response["error"], response["identifier"]) == (200, "OK", "row-7")
    assert response["params"] == {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 0,
    }
    assert response["usage"]["total_tokens"] > 0
    assert "identifier" not in environment.requests[-1].params


async def test_a_failed_response_says_why(use: Use) -> None:
    async with running(faulty("model_not_found")) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            response = await client.get_response("Why?")
    assert (response["output"], response["status"]) == (None, 404)
    assert response["error"] != "OK"
    assert response["error_code"] == "model_not_found"


async def test_nothing_is_made_before_the_first_use(environment: Provider) -> None:
    before = len(_open.get(asyncio.get_running_loop(), []))
    client = OpenAIClient("gpt-5-mini")
    assert len(_open.get(asyncio.get_running_loop(), [])) == before
    await client.invoke("Why?")
    assert len(_open[asyncio.get_running_loop()]) == before + 1
    await client.close()
    assert len(_open[asyncio.get_running_loop()]) == before


async def test_clients_with_the_same_settings_share_their_connections(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as one, OpenAIClient("gpt-5-nano") as other:
        await one.invoke("a")
        await other.invoke("b")
        assert len(_open[asyncio.get_running_loop()]) == 1
        await one.close()
        await other.invoke("c")  # one's closing has not closed what both use
        async with OpenAIClient("gpt-5-mini", api_key="sk-another-0123456789") as third:
            await third.invoke("d")
            assert len(_open[asyncio.get_running_loop()]) == 2
    assert _open[asyncio.get_running_loop()] == []


async def test_a_closed_client_opens_again(environment: Provider) -> None:
    client = OpenAIClient("gpt-5-mini")
    await client.invoke("a")
    await client.close()
    await client.close()
    await client.invoke("b")
    await client.close()
    assert len(environment.requests) == 2


def test_one_client_serves_one_loop_after_another_and_leaves_nothing_open(use: Use) -> None:
    with running_elsewhere(Script()) as provider:
        use(provider)
        client = OpenAIClient("gpt-5-mini")

        async def main() -> str:
            return (await client.invoke("Why?")).text  # never closed: the loop's end does it, or a warning fails this

        assert asyncio.run(main()) == asyncio.run(main())


async def test_leaving_a_stream_closes_the_providers_connection(use: Use) -> None:
    async with running(Script(source=Text("word " * 1000), rate=200)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            async with aclosing(client.stream("Why?")) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        break
            await provider.until(lambda requests: requests[-1].ended is not None)
        assert provider.requests[-1].client_closed


async def test_closing_a_client_does_not_cut_off_what_runs(use: Use) -> None:
    async with running(Script(source=Text("Hello there, world."), rate=100)) as provider:
        use(provider)
        client = OpenAIClient("gpt-5-mini")
        events = client.stream("Why?")
        first = await anext(events)
        await client.close()
        rest = [event async for event in events]
        assert "".join(e.text for e in (first, *rest) if isinstance(e, TextDelta)) == "Hello there, world."
    assert _open[asyncio.get_running_loop()] == []


async def test_the_key_and_the_address_can_be_given(use: Use) -> None:
    async with running(Script(require_key="sk-mine-0123456789")) as provider, running(Script()) as other:
        use(other)
        async with OpenAIClient("gpt-5-mini", api_key="sk-mine-0123456789", base_url=provider.base_url) as client:
            assert "sk-mine" not in repr(client) + repr(vars(client))
            await client.invoke("Why?")
        assert len(provider.requests) == 1
        assert other.requests == []


async def test_a_request_without_streaming_gives_the_same_events(use: Use) -> None:
    async with running(Script(source=Text("Hello there."))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            result = await client.invoke("Why?", stream=False)
        assert provider.requests[-1].params.get("stream") in (None, False)
    assert result.text == "Hello there."
    assert result.usage.source == "reported"


async def test_extra_body_is_sent_as_it_is(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        await client.invoke("Why?", extra_body={"top_k": 5})
    assert environment.requests[-1].params["top_k"] == 5


async def test_a_profile_may_stand_for_the_model(environment: Provider) -> None:
    async with OpenAIClient(GPT5Mini) as client:
        await client.invoke("Why?")
    assert environment.requests[-1].params["model"] == "gpt-5-mini"
