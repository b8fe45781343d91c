"""The functions that litellm's users know give what the openai SDK itself gives for the same request."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deltafan import errors
from deltafan.client import litellm
from deltafan.client.transports import _open
from deltafan.devserver.provider import Echo, Provider, Script, Text, ToolCall, parse_fault, running
from tests.unit.client.conftest import KEY, running_elsewhere

Use = Callable[[Provider], None]
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
SCRIPTS = {
    "text": (Script(source=Text("Because of Rayleigh.")), {}),
    "choices": (Script(source=Text("Because.")), {"n": 3}),
    "reasoning": (Script(source=Text("Because."), reasoning="Let me think."), {}),
    "refusal": (Script(refusal="I would rather not."), {}),
    "tools": (Script(tool_calls=(ToolCall("look", '{"at":"sky"}'), ToolCall("think", "{}"))), {}),
    "length": (Script(source=Text("Because of Rayleigh."), chunk_size=3), {"max_tokens": 2}),
}


def said(answer: ChatCompletion) -> dict[str, Any]:
    """All that an answer says but its id and its time."""
    dumped = answer.model_dump(exclude_none=True)
    assert dumped.pop("id").startswith("chatcmpl-")
    assert dumped.pop("created") > 0
    for optional in ("system_fingerprint", "service_tier"):
        dumped.pop(optional, None)
    for choice in dumped["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id").startswith("call_")  # made anew by the provider for each answer
        if choice["message"].get("content") == "":
            del choice["message"]["content"]
    cost = dumped.get("usage", {}).pop("cost", 0.0)
    assert cost >= 0
    return dumped


def gathered(chunks: Iterable[ChatCompletionChunk]) -> dict[str, Any]:
    """What chunks amount to, read as the SDK's users read them."""
    whole: dict[str, Any] = {"usage": None, "roles": {}, "text": {}, "reasoning": {}, "refusal": {}, "calls": {}}
    finish: dict[int, str] = {}
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        whole["model"] = chunk.model
        if chunk.usage is not None:
            whole["usage"] = chunk.usage.model_dump(exclude_none=True)
            whole["usage"].pop("cost", None)
        for choice in chunk.choices:
            delta, index = choice.delta, choice.index
            if delta.role:
                whole["roles"][index] = delta.role
            for field, name in (("text", "content"), ("refusal", "refusal"), ("reasoning", "reasoning_content")):
                if piece := getattr(delta, name, None):
                    whole[field][index] = whole[field].get(index, "") + piece
            for call in delta.tool_calls or []:
                assert call.function is not None
                known = whole["calls"].setdefault((index, call.index), ["", "", ""])
                known[0] += (call.id or "")[:5]  # made anew by the provider for each answer
                known[1] += call.function.name or ""
                known[2] += call.function.arguments or ""
            if choice.finish_reason:
                finish[index] = choice.finish_reason
    return whole | {"finish": finish}


@pytest.fixture(params=list(SCRIPTS))
def script(request: pytest.FixtureRequest) -> tuple[Script, dict[str, Any]]:
    found: tuple[Script, dict[str, Any]] = SCRIPTS[request.param]
    return found


async def test_a_completion_is_the_sdks_own(use: Use, script: tuple[Script, dict[str, Any]]) -> None:
    async with running(script[0]) as provider:
        use(provider)
        async with openai.AsyncOpenAI(api_key=KEY, base_url=provider.base_url) as sdk:
            theirs = await sdk.chat.completions.create(model="gpt-5-mini", messages=MESSAGES, **script[1])  # type: ignore[call-overload]
        ours = await litellm.acompletion("openai/gpt-5-mini", MESSAGES, **script[1])
    assert isinstance(ours, ChatCompletion)
    assert said(ours) == said(theirs)


async def test_chunks_are_the_sdks_own(use: Use, script: tuple[Script, dict[str, Any]]) -> None:
    more = {**script[1], "stream": True, "stream_options": {"include_usage": True}}
    async with running(script[0]) as provider:
        use(provider)
        async with openai.AsyncOpenAI(api_key=KEY, base_url=provider.base_url) as sdk:
            stream = await sdk.chat.completions.create(model="gpt-5-mini", messages=MESSAGES, **more)  # type: ignore[call-overload]
            theirs = [chunk async for chunk in stream]
        ours = [chunk async for chunk in await litellm.acompletion("openai/gpt-5-mini", MESSAGES, **more)]
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in ours)
    assert len({chunk.id for chunk in ours}) == 1
    assert gathered(ours) == gathered(theirs)


async def test_usage_is_in_the_last_chunk_when_it_is_asked_for_only(environment: Provider) -> None:
    plain = [chunk async for chunk in await litellm.acompletion("gpt-5-mini", "Hi", stream=True)]
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    with_usage = [
        chunk
        async for chunk in await litellm.acompletion(
            "gpt-5-mini", "Hi", stream=True, stream_options={"include_usage": True}
        )
    ]
    assert with_usage[-1].usage is not None
    assert [chunk.usage for chunk in with_usage[:-1]] == [None] * len(plain)
    # As litellm's: a program that reads `choices[0]` of every chunk may.
    assert [choice.to_dict() for choice in with_usage[-1].choices] == [
        {"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}
    ]


def test_plain_functions_do_the_same(use: Use) -> None:
    with running_elsewhere(Script(source=Echo())) as provider:
        use(provider)
        answer = litellm.completion(model="openai/gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
        assert answer.choices[0].message.content == "Hello"
        chunks = litellm.completion("openai/gpt-5-mini", "Hello", stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        assert list(chunks) == []

        async def inside_a_loop() -> str | None:
            return litellm.completion("openai/gpt-5-mini", "Hello").choices[0].message.content

        assert asyncio.run(inside_a_loop()) == "Hello"


async def test_embeddings_are_the_sdks_own(environment: Provider) -> None:
    texts = ["the sky", "the sea"]
    async with openai.AsyncOpenAI(api_key=KEY, base_url=environment.base_url) as sdk:
        theirs = await sdk.embeddings.create(model="text-embedding-3-small", input=texts, dimensions=8)
    ours = await litellm.aembedding("openai/text-embedding-3-small", input=texts, dimensions=8)
    assert isinstance(ours, openai.types.CreateEmbeddingResponse)
    assert [one.embedding for one in ours.data] == [one.embedding for one in theirs.data]
    assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens
    assert (ours.model, ours.object) == (theirs.model, theirs.object)
    assert [(one.index, one.object) for one in ours.data] == [(one.index, one.object) for one in theirs.data]
    again = await asyncio.to_thread(
        litellm.embedding, "openai/text-embedding-3-small", texts, encoding_format="float", dimensions=8
    )
    assert again.data == ours.data


async def test_vectors_are_given_as_base64_when_asked_for(environment: Provider) -> None:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=environment.base_url) as sdk:
        arguments: dict[str, Any] = {"input": ["the sky"], "dimensions": 8, "encoding_format": "base64"}
        theirs = await sdk.embeddings.create(model="text-embedding-3-small", **arguments)
    ours = await litellm.aembedding("openai/text-embedding-3-small", **arguments)
    assert isinstance(ours.data[0].embedding, str)
    assert ours.data[0].embedding == theirs.data[0].embedding
    with pytest.raises(errors.ValidationError, match=r"^encoding_format: "):
        await litellm.aembedding("openai/text-embedding-3-small", "Hi", encoding_format="int8")


async def test_answers_are_read_by_key_too(use: Use) -> None:
    script = Script(source=Text("Hello."), reasoning="Hm.", tool_calls=(ToolCall("look", "{}"),))
    async with running(script) as provider:
        use(provider)
        answer: Any = await litellm.acompletion("openai/gpt-5-mini", "Hi")
        options = {"include_usage": True}
        chunks: Any = await litellm.acompletion("openai/gpt-5-mini", "Hi", stream=True, stream_options=options)
        chunks = [chunk async for chunk in chunks]
        vectors: Any = await litellm.aembedding("openai/text-embedding-3-small", "Hi", dimensions=2)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message.get("nothing", 1)) == ("Hello.", "Hm.", 1)
    assert message["tool_calls"][0]["function"]["name"] == "look"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert "nothing" not in answer
    with pytest.raises(KeyError, match="nothing"):
        answer["nothing"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello."
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"]["tool_calls"] or ()]
    assert calls[0]["function"]["name"] == "look"
    assert chunks[-1]["usage"]["total_tokens"] == answer["usage"]["total_tokens"]
    assert len(vectors["data"][0]["embedding"]) == 2
    assert vectors["usage"]["prompt_tokens"] == 1
    assert pickle.loads(pickle.dumps(answer)) == answer


async def test_the_key_and_the_address_may_be_given_as_litellm_has_them(use: Use) -> None:
    async with running(Script(require_key="sk-mine-0123456789")) as provider, running(Script()) as other:
        use(other)
        for address in ("base_url", "api_base"):
            answer = await litellm.acompletion(
                "openai/gpt-5-mini", "Hi", api_key="sk-mine-0123456789", **{address: provider.base_url}
            )
            assert answer.choices[0].message.content
        assert other.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("authentication", errors.AuthenticationError),
        ("rate_limit", errors.RateLimitError),
        ("context_length", errors.ContextWindowExceededError),
        ("bad_request", errors.BadRequestError),
        ("model_not_found", errors.NotFoundError),
        ("permission", errors.PermissionDeniedError),
        ("server_error=503", errors.ServiceUnavailableError),
        ("server_error=500", errors.InternalServerError),
    ],
)
async def test_failures_have_litellms_names(use: Use, fault: str, error: type[errors.APIError], stream: bool) -> None:
    async with running(Script(faults=(parse_fault(fault),))) as provider:
        use(provider)
        with pytest.raises(error) as caught:
            await litellm.acompletion("groq/llama", "Hi", stream=stream, num_retries=0)
    assert isinstance(caught.value, litellm.exceptions.APIError)
    assert caught.value.llm_provider == "groq"
    assert caught.value.status_code == caught.value.status
    assert len(provider.requests) == 1


async def test_it_is_tried_again_as_often_as_is_said(use: Use) -> None:
    script = Script(source=Text("Hello."), faults=(parse_fault("server_error*1"),))
    async with running(script) as provider:
        use(provider)
        answer = await litellm.acompletion("openai/gpt-5-mini", "Hi", num_retries=1)
        assert answer.choices[0].message.content == "Hello."
        assert len(provider.requests) == 2


async def test_another_model_answers_when_one_fails(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Script(faults=(parse_fault("authentication"),))
    async with running(failing) as broken, running(Script(source=Text("Hello."))) as provider:
        use(provider)
        monkeypatch.setenv("OPENAI_BASE_URL", broken.base_url)
        arguments: dict[str, Any] = {"model": "openai/gpt-5-mini", "messages": "Hi", "fallbacks": ["groq/llama"]}
        answer = await litellm.acompletion(**arguments)
        assert (answer.choices[0].message.content, answer.model) == ("Hello.", "llama")
        chunks = [chunk async for chunk in await litellm.acompletion(**arguments, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello."
        assert {chunk.model for chunk in chunks} == {"llama"}


async def test_an_answer_that_broke_off_is_an_error_and_not_begun_anew(use: Use) -> None:
    async with running(Script(source=Text("Hello there, world."), faults=(parse_fault("cut=2"),))) as provider:
        use(provider)
        chunks = await litellm.acompletion("openai/gpt-5-mini", "Hi", stream=True, fallbacks=["groq/llama"])
        with pytest.raises(errors.APIConnectionError):
            _ = [chunk async for chunk in chunks]
        assert len(provider.requests) == 1


async def test_leaving_a_stream_closes_the_providers_connection(use: Use) -> None:
    async with running(Script(source=Text("word " * 1000), rate=100)) as provider:
        use(provider)
        async with await litellm.acompletion("openai/gpt-5-mini", "Hi", stream=True):
            pass
        await provider.until(lambda requests: requests[-1].client_closed)
        chunks = await asyncio.to_thread(litellm.completion, "openai/gpt-5-mini", "Hi", stream=True)
        await asyncio.to_thread(chunks.close)  # type: ignore[attr-defined]
        await provider.until(lambda requests: len(requests) == 2 and requests[-1].client_closed)


async def test_calls_share_a_connection_and_hold_nothing_else(environment: Provider) -> None:
    for _ in range(3):
        await litellm.acompletion("openai/gpt-5-mini", "Hi", temperature=None)
        await litellm.aembedding("openai/text-embedding-3-small", "Hi")
        _ = [chunk async for chunk in await litellm.acompletion("openai/gpt-5-mini", "Hi", stream=True)]
    [transport] = _open[asyncio.get_running_loop()]
    assert transport._users == 1  # who keeps it for the next call
    assert "temperature" not in environment.requests[0].params


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"messages": "Hi", "num_retries": -1}, "num_retries"),
        ({"messages": "Hi", "fallbacks": "other"}, "fallbacks"),
        ({"messages": "Hi", "fallbacks": [7]}, r"fallbacks\[0\]"),
        ({"messages": "Hi", "fallbacks": [{"model": "a", "api_key": "b"}]}, r"fallbacks\[0\].api_key"),
        ({"messages": "Hi", "timeout": "soon"}, "timeout"),
        ({"messages": "Hi", "request_timeout": 0}, "request_timeout"),
        ({"messages": "Hi", "mock_response": "Hello."}, "mock_response"),
        ({"messages": "Hi", "extra_headers": {"a": "b"}}, "extra_headers"),
        ({"messages": "Hi", "headers": {"a": "b"}}, "headers"),
        ({"messages": "Hi", "api_version": "2024-01"}, "api_version"),
        ({"messages": "Hi", "organization": "o"}, "organization"),
        ({"messages": []}, "messages"),
    ],
)
async def test_a_wrong_argument_is_named(environment: Provider, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.ValidationError, match=rf"^{field}: "):
        await litellm.acompletion("openai/gpt-5-mini", **arguments)


async def test_what_is_the_clients_is_not_sent(environment: Provider) -> None:
    more = {"drop_params": True, "caching": True, "request_timeout": "5", "fallbacks": [{"model": "groq/llama"}]}
    await litellm.acompletion("openai/gpt-5-mini", "Hi", **more)
    assert environment.requests[-1].params.keys() <= {"model", "messages", "stream"}


async def test_a_timeout_may_be_text(use: Use) -> None:
    async with running(Script(faults=(parse_fault("slow_headers=30"),))) as provider:
        use(provider)
        with pytest.raises(errors.Timeout):
            await litellm.acompletion("openai/gpt-5-mini", "Hi", timeout="0.1", num_retries=0)


async def test_cost_and_tokens_have_litellms_functions(environment: Provider) -> None:
    answer = await litellm.acompletion("openai/gpt-5-mini", "Hi")
    assert litellm.completion_cost(answer) == answer.usage.cost > 0  # type: ignore[union-attr]
    assert litellm.token_counter("gpt-4o", text="Why is the sky blue?") == 6
    assert litellm.token_counter(model="gpt-4o", messages=MESSAGES) > 6
    unknown = await litellm.acompletion("vllm/unheard-of", "Hi", api_base=environment.base_url)
    with pytest.raises(errors.ValidationError, match="cost is not known"):
        litellm.completion_cost(unknown)
    with pytest.raises(errors.ValidationError, match="either"):
        litellm.token_counter("gpt-4o")
