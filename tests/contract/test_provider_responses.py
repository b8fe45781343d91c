"""The provider's Responses API: to the official client it is OpenAI's, and its faults are the chat interface's."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import ResponseErrorEvent, ResponseIncompleteEvent

from deltafan.devserver.provider import Provider, Script, Text, ToolCall, replay, running
from tests.unit.devserver.provider_client import ask, sdk

TEXT = "Grüße aus Köln, 👋 and so on."
CALLS = (ToolCall("get_weather", '{"city":"Köln"}'), ToolCall("get_time"))
EVERYTHING = Script(source=Text(TEXT), reasoning="Let me think — ja.", tool_calls=CALLS)


async def raw(provider: Provider, fault: str = "", **params: Any) -> Any:
    headers = {"X-Provider-Fault": fault} if fault else {}
    return await ask(provider, headers, path="/responses", input="Say something.", **params)


async def test_the_official_client_reads_streams_and_whole_answers_alike() -> None:
    async with running(EVERYTHING) as provider, sdk(provider) as client:
        events = [event async for event in await client.responses.create(model="m", input="Say it.", stream=True)]
        whole = await client.responses.create(model="m", input="Say it.")
    streamed = events[-1].response  # type: ignore[union-attr]
    for response in (streamed, whole):
        assert response.output_text == TEXT
        kinds = [item.type for item in response.output]
        assert kinds == ["reasoning", "message", "function_call", "function_call"]
        assert response.output[0].summary[0].text == "Let me think — ja."
        assert [(i.name, i.arguments) for i in response.output[2:]] == [(c.name, c.arguments) for c in CALLS]
        assert (response.status, response.usage.input_tokens) == ("completed", 2)
        assert response.usage.output_tokens_details.reasoning_tokens > 0
    texts = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert texts == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert provider.requests[0].text == TEXT
    assert provider.requests[0].chunks == provider.requests[1].chunks == streamed.usage.output_tokens


async def test_a_refusal_is_a_part_of_a_message() -> None:
    async with running(Script(refusal="No.")) as provider, sdk(provider) as client:
        response = await client.responses.create(model="m", input="Say it.")
    assert response.output[0].content[0].refusal == "No."  # type: ignore[union-attr]


async def test_an_answer_over_its_limit_is_incomplete() -> None:
    async with running(Script(source=Text("abcdef"), chunk_size=2)) as provider, sdk(provider) as client:
        response = await client.responses.create(model="m", input="a", max_output_tokens=1)
        filtered = await client.responses.create(
            model="m", input="a", stream=True, extra_headers={"X-Provider-Fault": "content_filter=1"}
        )
        last = [event async for event in filtered][-1]
    assert (response.status, response.output_text) == ("incomplete", "ab")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert isinstance(last, ResponseIncompleteEvent)
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "content_filter"


async def test_a_tools_result_ends_the_calls_and_the_journal_tells_prompts_apart() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "42"}
    async with running(Script(source=Text("done"), tool_calls=CALLS)) as provider, sdk(provider) as client:
        first = await client.responses.create(model="m", input="go")
        second = await client.responses.create(
            model="m", instructions="Be brief.", input=[{"role": "user", "content": "go"}, call, result]
        )
    assert len(first.output) == 3
    assert [item.type for item in second.output] == ["message"]
    assert provider.requests[0].key != provider.requests[1].key


@pytest.mark.parametrize(("fault", "deltas"), [("cut=3", 3), ("close=3", 3), ("malformed=3", 7)])
async def test_faults_count_the_deltas(fault: str, deltas: int) -> None:
    async with running(Script(source=Text("abcdefgh"), chunk_size=1)) as provider:
        reply = await raw(provider, fault)
        await provider.until(lambda records: records[0].ended is not None)
    name = fault.partition("=")[0]
    assert reply.complete is (name != "cut")
    assert reply.body.count(b"event: response.output_text.delta\n") == deltas
    assert provider.requests[0].outcome == f"fault:{name}"


async def test_an_error_in_the_stream_is_an_error_event() -> None:
    async with running(Script(source=Text("abcdefgh"))) as provider, sdk(provider) as client:
        headers = {"X-Provider-Fault": "error=1"}
        stream = await client.responses.create(model="m", input="a", stream=True, extra_headers=headers)
        events: list[Any] = []
        try:
            events += [event async for event in stream]
        except openai.APIError as error:
            events.append(error)
    assert isinstance(events[-1], (ResponseErrorEvent, openai.APIError))


async def test_a_recorded_stream_is_replayed() -> None:
    recording = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
    async with running(Script(source=replay(recording))) as provider:
        assert (await raw(provider)).body == recording
        assert provider.requests[0].text == "Hi"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"instructions": 3}, "instructions"),
    ],
)
async def test_a_wrong_parameter_is_named(params: dict[str, Any], param: str) -> None:
    async with running(Script()) as provider:
        reply = await ask(provider, path="/responses", **({"input": "a"} | params))
    assert (reply.status, reply.error["param"]) == (400, param)
