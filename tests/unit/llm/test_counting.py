"""`count_tokens`."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.llm.tokens import TokenCount, count_of, count_tokens, rough_count

USER = {"role": "user", "content": "tiktoken is great!"}  # 6 tokens


def test_a_count_is_a_number_that_knows_whether_it_is_exact() -> None:
    count = count_tokens("tiktoken is great!", "gpt-4o")
    assert (count, count.exact, repr(count), count + 1) == (6, True, "6", 7)
    estimate = TokenCount(6, exact=False)
    assert (repr(estimate), repr(pickle.loads(pickle.dumps(estimate)))) == ("6 (estimated)", "6 (estimated)")


@pytest.mark.parametrize(
    ("messages", "model", "tokens"),
    [
        ([USER], "gpt-4o", 6 + 1 + 3 + 3),
        ([USER], "gpt-4", 6 + 1 + 3 + 3),
        ([USER], "azure/gpt-4o", 6 + 1 + 3 + 3),
        ([USER], "openrouter/openai/gpt-4o", 6 + 1 + 3 + 3),
        ([USER], "gpt-5-mini", 6 + 1 + 3 + 2),
        ([USER | {"name": "example_user"}], "gpt-4o", 6 + 1 + 2 + 1 + 3 + 3),
        ([USER, {"role": "assistant", "content": None}, USER], "gpt-4o", 3 * (1 + 3) + 2 * 6 + 3),
        ([{"role": "user", "content": [{"type": "text", "text": "tiktoken is great!"}]}], "gpt-4o", 6 + 1 + 3 + 3),
        ([], "gpt-4o", 3),
    ],
)
def test_text_messages_are_counted_exactly_by_the_cookbooks_rule(
    messages: list[dict[str, Any]], model: str, tokens: int
) -> None:
    count = count_tokens(messages, model)
    assert (count, count.exact) == (tokens, True)


def test_the_cookbooks_own_example() -> None:
    messages = [
        ("system", None, "You are a helpful, pattern-following assistant that translates corporate jargon "
         "into plain English."),
        ("system", "example_user", "New synergies will help drive top-line growth."),
        ("system", "example_assistant", "Things working well together will increase revenue."),
        ("system", "example_user", "Let's circle back when we have more bandwidth to touch base on opportunities "
         "for increased leverage."),
        ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
        ("user", None, "This late pivot means we don't have time to boil the ocean for the client deliverable."),
    ]  # fmt: skip
    chat = [{"role": role, **({"name": name} if name else {}), "content": text} for role, name, text in messages]
    assert count_tokens(chat, "gpt-4-0613") == 129  # as OpenAI's API answered, by the notebook


def test_what_openai_reported_for_recorded_prompts_is_what_we_count() -> None:
    """gpt-4o and gpt-5 answered these with `prompt_tokens` 14 and 13."""
    assert count_tokens([{"role": "user", "content": "What is the capital of Mexico?"}], "gpt-4o") == 14
    assert count_tokens([{"role": "user", "content": "What is the capital of France?"}], "gpt-5") == 13


CALL = {"id": "call_1", "type": "function", "function": {"name": "get_capital", "arguments": '{"country":"UK"}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_capital",
        "description": "",
        "parameters": {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]},
    },
}


def test_a_recorded_turn_with_tools_is_estimated_within_a_few_tokens() -> None:
    messages = [
        {"role": "user", "content": "What is the capital of the UK? Use the tool, then answer."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "London", "tool_call_id": "call_1"},
    ]
    count = count_tokens(messages, "gpt-4o-mini", tools=[TOOL])
    assert not count.exact
    assert count == pytest.approx(78, abs=4)  # what OpenAI reported


@pytest.mark.parametrize(
    ("prompt", "model", "tools"),
    [
        ([USER], "anthropic/claude-sonnet-4-5", []),
        ("text", "groq/llama-3", []),
        ("text", "gpt-99", []),
        ([USER], "gpt-4o", [TOOL]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], "gpt-4o", []),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x" * 9}}]}], "gpt-4o", []),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}], "gpt-4o", []),
    ],
)
def test_what_cannot_be_counted_exactly_says_so(prompt: Any, model: str, tools: list[Any]) -> None:
    count = count_tokens(prompt, model, tools=tools)
    assert count > 0
    assert not count.exact


def test_an_image_counts_as_an_image_and_not_as_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert 765 < count_tokens([{"role": "user", "content": [image]}], "gpt-4o") < 780
    assert rough_count([{"role": "user", "content": [image]}])[1] < 900


def test_nested_properties_and_enums_of_a_tool_count() -> None:
    def tool(schema: Any) -> Any:
        return {"type": "function", "function": {"name": "f", "description": "d.", "parameters": schema}}

    def counted(schema: Any) -> int:
        return count_tokens([USER], "gpt-4o", tools=[tool(schema)])

    flat = {"type": "object", "properties": {"a": {"type": "string", "description": "what."}}}
    assert counted(None) == 13 + 7 + 2 + 12  # f:d
    assert counted(flat) == counted(None) + 3 + 3 + 4  # a:string:what
    enum = {"type": "object", "properties": {"a": {"type": "string", "description": "what.", "enum": ["x", "y"]}}}
    assert counted(enum) == counted(flat) - 3 + 2 * (3 + 1)
    assert counted({"type": "object", "properties": {"list": {"type": "array", "items": flat}}}) > counted(flat)


@pytest.mark.parametrize(
    "tool", [{}, {"type": "web_search"}, {"function": 5}, {"function": {"name": 5, "parameters": []}}]
)
def test_odd_tools_are_no_failure(tool: dict[str, Any]) -> None:
    assert count_tokens([USER], "gpt-4o", tools=[tool]) > 0


TEXTS = st.text(max_size=60)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool"]),
            "content": st.none() | TEXTS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS})),
            "name": TEXTS,
            "tool_calls": st.lists(
                st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXTS, "arguments": TEXTS})})
            ),
        },
    ),
    max_size=4,
)


@given(MESSAGES)
def test_the_quick_bound_is_never_below_the_count(messages: list[dict[str, Any]]) -> None:
    estimate, bound = rough_count(messages)
    assert estimate <= bound
    for name in ("gpt-4o", "gpt-4", "gpt-5"):
        assert count_of(messages, "openai", name) <= bound


def test_json_of_a_tool_bounds_its_tokens_too() -> None:
    properties = {f"p{n}": {"type": "string", "enum": ["a", "b"], "description": "It."} for n in range(40)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    assert count_tokens([], "gpt-4o", tools=[tool]) <= rough_count([], [tool])[1]
    assert len(json.dumps(tool)) > 1000
