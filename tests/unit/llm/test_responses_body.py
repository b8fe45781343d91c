"""Requests to the Responses API: chat completions' messages and parameters, translated or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from deltafan.devserver.provider import Script, Text, running
from deltafan.errors import CompletionError
from deltafan.llm import PROVIDERS, Request
from deltafan.llm.body import body_of
from tests.unit.llm.test_nonstreaming import collect

HELLO = {"role": "user", "content": "hello"}
F = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


def body(messages: Any = (HELLO,), *, streaming: bool = True, prefix: str = "", **params: Any) -> dict[str, Any]:
    request = Request("m", messages, params, prefix=prefix, api="responses", streaming=streaming)
    return body_of(request, PROVIDERS["openai"], "m")


def items(*messages: dict[str, Any]) -> Any:
    return body(messages)["input"]


def refused(*messages: Any, **params: Any) -> str:
    with pytest.raises(CompletionError) as caught:
        body(messages or (HELLO,), **params)
    assert caught.value.code == "bad_request"
    return caught.value.message


def test_the_least_request() -> None:
    assert body() == {"model": "m", "stream": True, "input": [HELLO]}
    assert body(streaming=False) == {"model": "m", "stream": False, "input": [HELLO]}


def test_roles_stay_what_they_are() -> None:
    system, developer = {"role": "system", "content": "s"}, {"role": "developer", "content": "d"}
    answer = {"role": "assistant", "content": "hi", "phase": "commentary", "reasoning_content": "left out"}
    assert items(system, developer, HELLO, answer) == [
        system,
        developer,
        HELLO,
        {"role": "assistant", "content": "hi", "phase": "commentary"},
    ]


def test_a_users_parts_become_input_parts() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "input_text", "text": "as it is"},
    ]
    assert items({"role": "user", "content": parts})[0]["content"] == [
        {"type": "input_text", "text": "what is this?"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:,"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "input_text", "text": "as it is"},
    ]


def test_calls_and_their_results_become_items() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"id": "c3", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}},
    ]
    assert items(
        HELLO,
        {"role": "assistant", "content": "wait", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "42", "name": "f"},
        {"role": "tool", "tool_call_id": "c3", "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "content": None, "tool_calls": calls[:1]},
    ) == [
        HELLO,
        {"role": "assistant", "content": "wait"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c3", "name": "sql", "input": "SELECT 1"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
    ]


def test_an_assistants_parts_are_text_or_a_refusal() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert items({"role": "assistant", "content": parts}) == [{"role": "assistant", "content": "ab"}]
    assert items({"role": "assistant", "content": "a", "refusal": "No."})[0]["content"] == [
        {"type": "output_text", "text": "a"},
        {"type": "refusal", "refusal": "No."},
    ]


def test_items_among_the_messages_stay_what_they_are() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    assert items(HELLO, item) == [HELLO, item]


def test_input_is_sent_as_it_is_and_messages_follow_it() -> None:
    assert body((), input="hello")["input"] == "hello"
    assert body((), input=[HELLO])["input"] == [HELLO]
    assert body(input="first")["input"] == [{"role": "user", "content": "first"}, HELLO]
    assert body(input=[{"type": "item_reference", "id": "i"}])["input"] == [
        {"type": "item_reference", "id": "i"},
        HELLO,
    ]
    assert "input" not in body((), previous_response_id="resp_1", prompt={"id": "p"})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "x", "name": "Ann"}, "messages[0].name"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[0].role"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, "messages[0].function_call"),
        ({"role": "assistant", "tool_calls": [{"type": "function"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "type": "x"}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": 3}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [3]}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "video"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "file"}]}, "messages[0].content[0].file"),
        ({"content": "x"}, "messages[0].role"),
    ],
)
def test_what_a_message_has_and_an_item_has_not_is_named(message: dict[str, Any], field: str) -> None:
    assert refused(message).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"max_tokens": 5}, {"max_output_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_output_tokens": 5}),
        ({"max_tokens": 9, "max_completion_tokens": 5}, {"max_output_tokens": 5}),
        ({"max_tokens": 9, "max_output_tokens": 5}, {"max_output_tokens": 5}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        (
            {"reasoning_effort": "low", "reasoning": {"summary": "auto"}},
            {"reasoning": {"effort": "low", "summary": "auto"}},
        ),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}}},
        ),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "function", "name": "f"}},
        ),
        (
            {"tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            {"tool_choice": {"type": "custom", "name": "f"}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
                }
            },
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}},
        ),
        ({"tool_choice": {"type": "web_search"}}, {"tool_choice": {"type": "web_search"}}),
        ({"logprobs": True, "top_logprobs": 2}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ({"logprobs": False, "n": 1, "modalities": ["text"]}, {}),
        ({"stream_options": {"include_usage": True}}, {}),
        (
            {"stream_options": {"include_usage": True, "include_obfuscation": False}},
            {"stream_options": {"include_obfuscation": False}},
        ),
        ({"stop": None, "seed": None, "temperature": None}, {}),
        (
            {"temperature": 0.5, "store": False, "previous_response_id": "r", "metadata": {"a": "b"}, "made_up": 1},
            {"temperature": 0.5, "store": False, "previous_response_id": "r", "metadata": {"a": "b"}, "made_up": 1},
        ),
        ({"base_url": "https://thief", "extra_headers": {"a": "b"}, "api_key": "x"}, {}),
    ],
)
def test_parameters_are_translated(params: dict[str, Any], expected: dict[str, Any]) -> None:
    assert body(**params) == {"model": "m", "stream": True, "input": [HELLO], **expected}


def test_tools_are_flat_and_keep_the_defaults_of_chat_completions() -> None:
    grammar = {"syntax": "lark", "definition": "x"}
    tools = [
        {"type": "function", "function": F},
        {"type": "function", "function": {"name": "g", "strict": True, "description": None}},
        {"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": grammar}}},
        {"type": "web_search"},
        {"type": "function", "name": "flat", "parameters": None, "strict": True},
    ]
    assert body(tools=tools)["tools"] == [
        {"type": "function", **F, "strict": False},
        {"type": "function", "name": "g", "parameters": {"type": "object", "properties": {}}, "strict": True},
        {"type": "custom", "name": "c", "format": {"type": "grammar", **grammar}},
        {"type": "web_search"},
        {"type": "function", "name": "flat", "parameters": None, "strict": True},
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["x"]),
        ("seed", 1),
        ("logit_bias", {"1": 1}),
        ("frequency_penalty", 0.0),
        ("presence_penalty", 0.0),
        ("n", 2),
        ("audio", {"voice": "a"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("functions", [F]),
        ("function_call", "auto"),
        ("web_search_options", {}),
    ],
)
def test_a_parameter_without_a_counterpart_is_named(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"params.{name}: the Responses API has no counterpart")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"tools": 3}, "params.tools"),
        ({"tools": [3]}, "params.tools[0]"),
        ({"text": 3, "verbosity": "low"}, "params.text"),
        ({"input": 3}, "params.input"),
        ({"streaming": False, "background": True}, "params.background"),
        ({"prefix": "Say: "}, "prefix"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(params: dict[str, Any], field: str) -> None:
    assert refused(**params).startswith(f"{field}: ")


async def test_the_scripted_provider_takes_what_is_sent() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        HELLO,
        {"role": "assistant", "content": "wait", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    async with running(Script(source=Text("Hi"))) as provider:
        params = {"max_tokens": 50, "tools": [{"type": "function", "function": F}]}
        await collect(provider.base_url, api="responses", streaming=True, messages=messages, params=params)
    assert provider.requests[0].text == "Hi"
    assert provider.requests[0].params == {
        "model": "m",
        "stream": True,
        "max_output_tokens": 50,
        "tools": [{"type": "function", **F, "strict": False}],
    }
