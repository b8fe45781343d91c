"""What cannot work is refused where it is passed, by its name and the rule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deltafan.client import OpenAIClient, iter_batch, run_batch
from deltafan.devserver.provider import Provider
from deltafan.errors import BadRequestError, ConfigurationError, ValidationError
from deltafan.llm.agent import AgentRunner
from deltafan.llm.cache.warm import warm_cache
from deltafan.llm.limits import Limiter
from deltafan.llm.profiles import find_profile
from deltafan.llm.retry import Retrying
from deltafan.llm.router import Deployment
from deltafan.llm.tokens import count_tokens

NAN, INF = float("nan"), float("inf")
MODEL = "gpt-5-mini"


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("api", "x", "chat or responses"),
        ("attempts", 0, "whole number"),
        ("attempts", 1.5, "whole number"),
        ("attempts", True, "whole number"),
        ("attempts", "3", "whole number"),
        ("backoff", "x", "0 or more"),
        ("backoff", None, "0 or more"),
        ("backoff", -1, "0 or more"),
        ("backoff", NAN, "0 or more"),
        ("backoff", INF, "0 or more"),
        ("limiter", "x", "a Limiter"),
        ("limiter", 60, "a Limiter"),
        ("router", "x", "a Router"),
        ("router", [Deployment("openai/gpt-5")], "a Router"),
        ("fallbacks", "groq/x", "a list of models"),
        ("fallbacks", 5, "a list of models"),
        ("fallbacks", [5], "a profile, or a name"),
        ("tools", print, "a list of functions and tools"),
        ("tools", "x", "a list of functions and tools"),
        ("base_url", 5, "text"),
        ("base_url", "127.0.0.1", "http://"),
        ("api_key", 5, "text"),
    ],
)
def test_a_clients_arguments_are_checked_when_it_is_made(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(ValidationError, match=f"^{argument}: must .*{rule}"):
        OpenAIClient(MODEL, **{argument: value})


def test_a_tool_that_is_no_function_is_refused_when_the_client_is_made() -> None:
    with pytest.raises(ConfigurationError, match=r"^tool int: "):
        OpenAIClient(MODEL, tools=[5])  # type: ignore[list-item]


@pytest.mark.parametrize("cache", [None, "fs"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mid_stream", "zz"),
        ("mid_stream", ["fail"]),
        ("check_context", "x"),
        ("tools", "x"),
        ("tools[0]", [print]),
        ("identifier", 5),
        ("identifier", "x" * 201),
        ("ttl", -1),
        ("ttl", NAN),
        ("rewrite_cache", "x"),
        ("cache_errors", 1),
    ],
)
def test_a_calls_options_are_checked_with_and_without_the_ring_they_are_for(
    option: str, value: Any, cache: str | None
) -> None:
    client = OpenAIClient(MODEL, cache_backend=cache)
    with pytest.raises(ValidationError) as caught:
        client.stream("Why?", **{option.partition("[")[0]: value})
    assert caught.value.fields[0].field == option


@pytest.mark.parametrize("heartbeat", [0, -1, 0.09, 1e-9, NAN, INF, None, "15", True])
def test_a_heartbeat_is_checked_at_the_call(heartbeat: Any) -> None:
    with pytest.raises(ValidationError, match=r"^heartbeat: must be a number of seconds, 0\.1 or more"):
        OpenAIClient(MODEL).stream_sse("Why?", heartbeat=heartbeat)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"timeout": "x"}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"ttl": -1}, "ttl"),
        ({"identifier": 5}, "identifier"),
    ],
)
async def test_the_arguments_of_embed_are_checked(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"^{field}: "):
        await OpenAIClient("text-embedding-3-small").embed("a", **arguments)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ("hello", "inputs"),
        (5, "inputs"),
        (None, "inputs"),
        ({"role": "user"}, "inputs"),
        ([5], r"inputs\[0\]"),
        (["a", [None]], r"inputs\[1\]\[0\]"),
        ((5 for _ in "a"), r"inputs\[0\]"),
    ],
)
async def test_what_warms_a_cache_is_checked(environment: Provider, inputs: Any, field: str) -> None:
    async with OpenAIClient(MODEL, cache_backend="fs") as client:
        with pytest.raises(ValidationError, match=f"^{field}: "):
            await client.warm_cache(inputs)
    assert not environment.requests


@pytest.mark.parametrize(
    ("coros", "field"), [(None, "coros"), (5, "coros"), ("ab", "coros"), ([1], r"coros\[0\]"), ([print], r"coros\[0\]")]
)
async def test_what_a_batch_is_made_of_is_checked(coros: Any, field: str) -> None:
    with pytest.raises(ValidationError, match=f"^{field}: must be a "):
        await run_batch(coros)
    with pytest.raises(ValidationError, match=f"^{field}: must be a "):
        await anext(iter_batch(coros))


async def test_a_refused_batch_has_run_nothing_and_leaves_no_coroutine_open() -> None:
    """Warnings are errors here: a coroutine that is never awaited nor closed would fail the test."""
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    with pytest.raises(ValidationError):
        await run_batch([work(), 5, work()])  # type: ignore[list-item]
    with pytest.raises(ValidationError):
        await run_batch(work())  # type: ignore[arg-type]
    assert not ran


async def test_a_generator_that_makes_something_else_ends_its_batch() -> None:
    never = asyncio.Event()

    def some() -> Iterator[Any]:
        yield never.wait()
        yield 5

    with pytest.raises(ValidationError, match=r"^coros\[1\]: "):
        await run_batch(some())


class _Silent:
    def stream(self, request: Any) -> Any:
        raise AssertionError("nobody is asked")


def runner() -> AgentRunner:
    return AgentRunner(_Silent(), [], model="m")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: runner().stream(5), "messages"),  # type: ignore[arg-type]
        (lambda: runner().stream(None), "messages"),  # type: ignore[arg-type]
        (lambda: runner().stream("a", timeout="x"), "timeout"),
        (lambda: runner().stream("a", stall_timeout=-1), "stall_timeout"),
        (lambda: AgentRunner(_Silent(), print, model="m"), "tools"),  # type: ignore[arg-type]
        (lambda: Limiter(5), "budgets"),  # type: ignore[arg-type]
        (lambda: Limiter(max_wait="x"), "max_wait"),  # type: ignore[arg-type]
        (lambda: Limiter(stores="redis"), "stores"),  # type: ignore[arg-type]
        (lambda: Limiter(lambda model: 5).limit(model="m"), "budgets"),  # type: ignore[arg-type, return-value]
        (lambda: Deployment(5), "deployment"),  # type: ignore[arg-type]
        (lambda: Deployment("x", weight="x"), "deployment x: weight"),  # type: ignore[arg-type]
        (lambda: Deployment("x", weight=NAN), "deployment x: weight"),
        (lambda: Deployment("x", name=5), "deployment x: name"),  # type: ignore[arg-type]
        (lambda: Retrying(_Silent(), attempts=0), "attempts"),
        (lambda: Retrying(_Silent(), backoff=NAN), "backoff"),
        (lambda: Retrying(_Silent(), max_wait=-1), "max_wait"),
        (lambda: count_tokens(5, "gpt-5"), "prompt"),  # type: ignore[arg-type]
        (lambda: count_tokens([5], "gpt-5"), r"prompt\[0\]"),  # type: ignore[list-item]
        (lambda: count_tokens("x", None), "model"),  # type: ignore[arg-type]
        (lambda: count_tokens([], "gpt-5", tools="x"), "tools"),  # type: ignore[arg-type]
        (lambda: find_profile(5), "model"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_the_other_parts_are_checked(call: Callable[[], Any], field: str) -> None:
    with pytest.raises((ValidationError, ConfigurationError), match=f"^{field}:? "):
        call()


async def test_a_run_of_an_agent_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(ValidationError, match=r"^messages: "):
        await runner().run(5)  # type: ignore[arg-type]


async def test_the_concurrency_of_warming_is_checked() -> None:
    with pytest.raises(ValidationError, match=r"^concurrency: "):
        await warm_cache(_Silent(), [], concurrency="x")  # type: ignore[arg-type]


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


def _itself() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


@pytest.mark.parametrize("make", [_deep, _itself])
@pytest.mark.parametrize("place", ["content", "part", "field"])
@pytest.mark.parametrize("check", [True, False])
async def test_messages_that_json_cannot_carry_are_a_bad_request(
    environment: Provider, make: Callable[[], list[Any]], place: str, check: bool
) -> None:
    message = {
        "content": {"role": "user", "content": make()},
        "part": {"role": "user", "content": [{"type": "x", "x": make()}]},
        "field": {"role": "user", "content": "a", "x": make()},
    }[place]
    async with OpenAIClient(MODEL) as client:
        with pytest.raises(BadRequestError, match="the request cannot be sent"):
            await client.invoke([message], check_context=check)
