"""The ring that refuses prompts that are too long."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, TextDelta
from deltafan.llm import LLMSettings, Request, encodings, profile
from deltafan.llm.context import ContextCheck
from deltafan.llm.profiles import ModelProfile
from deltafan.llm.settings import ModelSettings
from deltafan.llm.tokens import count_tokens

EVENTS = [TextDelta("Hi"), Done()]
WORDS = "word "  # a token each


class Inner:
    """The end of the chain: takes down what reaches it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.closed = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            for event in EVENTS:
                yield event
        finally:
            self.closed += 1


@pytest.fixture(autouse=True)
def small_models() -> Iterator[None]:
    class Small(ModelProfile):
        model = "gpt-4o-small"
        context_window = 1000

    class Narrow(ModelProfile):
        model = "gpt-4o-narrow"
        context_window = 1000
        max_input = 100

    class Foreign(ModelProfile):
        provider = "vllm"
        model = "foreign"
        context_window = 1000

    yield
    profile._OWN.clear()


async def send(
    model: str, prompt: Any, settings: LLMSettings | None = None, options: Any = None, **params: Any
) -> Request:
    """What reaches the provider."""
    inner = Inner()
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    request = Request(model, messages, params, options=options or {})
    assert [event async for event in ContextCheck(inner, settings).stream(request)] == EVENTS
    [reached] = inner.requests
    assert inner.closed == 1
    return reached


async def refused(model: str, prompt: Any, settings: LLMSettings | None = None, **params: Any) -> str:
    inner = Inner()
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    with pytest.raises(CompletionError) as caught:
        _ = [event async for event in ContextCheck(inner, settings).stream(Request(model, messages, params))]
    assert inner.requests == []
    assert caught.value.code == "context_length"
    assert not caught.value.retryable
    return caught.value.message


async def test_a_prompt_is_refused_from_the_first_token_too_many() -> None:
    fits = WORDS * 992 + "word"  # and 7 of markup
    assert count_tokens([{"role": "user", "content": fits}], "gpt-4o") == 1000
    assert (await send("gpt-4o-small", fits)).prompt_tokens == 1000
    told = await refused("gpt-4o-small", fits + " more")
    assert told == "the prompt has 1,001 tokens; the context window of gpt-4o-small is 1,000"


async def test_text_of_many_tokens_a_byte_is_not_passed_on_unseen() -> None:
    dense = random.Random(1).randbytes(950).hex()
    assert (tokens := count_tokens([{"role": "user", "content": dense}], "gpt-4o")) > 1000
    assert f"has {int(tokens):,} tokens" in await refused("gpt-4o-small", dense)


async def test_the_output_that_is_asked_for_needs_room_too() -> None:
    prompt = WORDS * 793
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert (await send("gpt-4o-small", prompt, **{name: 199})).prompt_tokens == 801
        told = await refused("gpt-4o-small", prompt, **{name: 200})
        assert told == (
            "the prompt has 801 tokens; the context window of gpt-4o-small is 1,000, and 200 are asked for as output"
        )
    await refused("gpt-4o-small", "hi", max_tokens=2000)
    await send("gpt-4o-small", "hi", max_tokens="many")  # what it means is for the provider to say


async def test_a_bound_of_prompts_alone_holds_as_well() -> None:
    await send("gpt-4o-narrow", WORDS * 90, max_tokens=900)
    assert await refused("gpt-4o-narrow", WORDS * 100) == "the prompt has 108 tokens; gpt-4o-narrow takes 100"


async def test_an_estimate_refuses_only_what_is_well_over_the_limit() -> None:
    assert (await send("vllm/foreign", WORDS * 1200)).prompt_tokens == 1208
    told = await refused("vllm/foreign", WORDS * 1300)
    assert told == "the prompt has about 1,308 tokens; the context window of foreign is 1,000"


@pytest.mark.parametrize(
    ("settings", "options"), [(LLMSettings(check_context=False), {}), (LLMSettings(), {"check_context": False})]
)
async def test_it_can_be_told_otherwise(settings: LLMSettings, options: dict[str, Any]) -> None:
    reached = await send("gpt-4o-small", WORDS * 5000, settings, options)
    assert reached.prompt_tokens is not None


async def test_a_model_that_nobody_knows_is_not_checked() -> None:
    assert (await send("vllm/unknown", WORDS * 1_000_000)).prompt_tokens == 1_250_000 + 6


async def test_the_settings_set_the_limit() -> None:
    models = {"vllm/mine": ModelSettings(context_window=50, input_price=Decimal(1))}
    assert "is 50" in await refused("vllm/mine", WORDS * 100, LLMSettings(models=models))


async def test_instructions_input_tools_and_a_prefix_count() -> None:
    long = WORDS * 1000
    await refused("gpt-4o-small", [], instructions=long)
    await refused("gpt-4o-small", [], input=long)
    await refused("gpt-4o-small", [], input=[{"role": "user", "content": [{"type": "input_text", "text": long}]}])
    tool = {"type": "function", "function": {"name": "f", "description": WORDS * 1500}}
    await refused("gpt-4o-small", "hi", tools=[tool])
    request = Request("gpt-4o-small", [{"role": "user", "content": "hi"}], prefix=long)
    with pytest.raises(CompletionError, match="the prompt has"):
        _ = [event async for event in ContextCheck(Inner()).stream(request)]


async def test_a_count_that_somebody_made_before_stays() -> None:
    inner = Inner()
    request = Request("gpt-4o-small", [{"role": "user", "content": "hi"}], prompt_tokens=77)
    _ = [event async for event in ContextCheck(inner).stream(request)]
    assert inner.requests[0].prompt_tokens == 77


async def test_what_surely_fits_is_passed_on_without_a_tokenizer_or_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("counted")

    monkeypatch.setattr(encodings, "count", refuse)
    inner = Inner()
    check = ContextCheck(inner)
    request = Request("gpt-4o-small", [{"role": "user", "content": "x" * 800}])
    for _ in range(2):
        events = check.stream(request)
        assert [event async for event in events] == EVENTS
    assert events.ag_code is Inner.stream.__code__  # type: ignore[attr-defined]
    assert [request.prompt_tokens for request in inner.requests] == [206, 206]


async def test_closing_early_closes_what_is_inside() -> None:
    for prompt in ("hi", WORDS * 900):
        inner = Inner()
        check = ContextCheck(inner)
        for _ in range(2):  # the first of a model goes another way
            events = check.stream(Request("gpt-4o-small", [{"role": "user", "content": prompt}]))
            assert await anext(events) == EVENTS[0]
            await events.aclose()
        assert inner.closed == 2


async def test_names_that_come_with_requests_do_not_pile_up() -> None:
    check = ContextCheck(Inner())
    for n in range(1100):
        check._limits[f"vllm/{n}"] = check._find("vllm/x")
    _ = [event async for event in check.stream(Request("vllm/new", [{"role": "user", "content": "hi"}]))]
    assert len(check._limits) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "content"]), inner),
    max_leaves=8,
)


@given(
    messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), JSON)), params=JSON
)
async def test_no_request_however_odd_is_more_than_refused(messages: list[Any], params: Any) -> None:
    request = Request("gpt-4o-small", messages, {"tools": params, "input": params, "max_tokens": params})
    inner = Inner()
    with suppress(CompletionError):
        assert [event async for event in ContextCheck(inner).stream(request)] == EVENTS
    assert len(inner.requests) <= 1
