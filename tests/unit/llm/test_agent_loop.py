"""The loop of a model and its tools, against models that do as they are told."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.events import Done, Event, Meta, TextDelta, ToolCallDelta, ToolResult, Usage
from deltafan.llm import Request
from deltafan.llm.agent import AgentRunner, Step, ToolLoop
from deltafan.llm.seam import Started
from deltafan.llm.tools import Tool, tool
from deltafan.transcript import Transcript

REQUEST = Request("m", [{"role": "user", "content": "How warm is it?"}])
ONE = Usage(1, 1, 2, source="reported", cost_usd=0.5)


class Model:
    """Completions that answer with these turns, one after the other; an error in place of an event is raised."""

    def __init__(self, *turns: list[Event | CompletionError]) -> None:
        self.turns = list(turns)
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        for step in self.turns.pop(0):
            if isinstance(step, CompletionError):
                raise step
            yield step


def calling(*calls: ToolCallDelta, text: str = "") -> list[Event | CompletionError]:
    said: list[Event | CompletionError] = [TextDelta(text)] if text else []
    return [*said, *calls, ONE, Done("tool_calls")]


def answering(text: str) -> list[Event | CompletionError]:
    return [TextDelta(text), ONE, Done("stop")]


def call(name: str, arguments: str = "{}", index: int = 0) -> ToolCallDelta:
    return ToolCallDelta(index, arguments, f"id_{name}_{index}", name)


async def collect(completions: Any, request: Request = REQUEST) -> list[Event]:
    async with aclosing(completions.stream(request)) as events:
        return [event async for event in events]


def results(events: list[Event]) -> list[ToolResult]:
    return [event for event in events if isinstance(event, ToolResult)]


def amount_to(events: list[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript


async def give(value: Any) -> Any:
    model = Model(calling(call("thing")), answering("ok"))
    made = Tool("thing", "", {}, lambda: value)
    [result] = results(await collect(ToolLoop(model, [made])))
    assert result.error is None
    return result.result, model.requests[1].messages[-1]["content"]


class Odd:
    def __str__(self) -> str:
        return "odd"


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("text", "text"),
        (None, None),
        (Odd(), "odd"),
        ([Odd()], ["odd"]),
        (Point(3), {"x": 3}),
        ({1: 2}, {"1": 2}),
        ({"a"}, ["a"]),
        (b"\xff!", "\ufffd!"),
        (2**70, str(2**70)),
        ("half \ud800", "half ?"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
async def test_a_result_that_is_not_json_is_turned_into_text(value: Any, told: Any) -> None:
    result, content = await give(value)
    assert result == told
    assert content == (told if isinstance(told, str) else orjson.dumps(told).decode())


async def test_a_sync_tool_sees_the_callers_context() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    user.set("ann")
    made = Tool("who", "", {}, lambda: (user.get(), threading.current_thread().name))
    events = await collect(ToolLoop(Model(calling(call("who")), answering("ok")), [made]))
    assert results(events)[0].result == ["ann", "deltafan-tool"]


async def test_results_come_as_they_are_there_and_go_back_in_the_order_of_the_calls() -> None:
    second = asyncio.Event()

    async def first() -> str:
        await second.wait()
        return "first"

    model = Model(calling(call("first", index=0), call("then", index=1)), answering("ok"))
    made = [tool(first), Tool("then", "", {}, lambda: "then")]
    seen: list[str] = []
    async with aclosing(ToolLoop(model, made).stream(REQUEST)) as events:
        async for event in events:
            if isinstance(event, ToolResult):
                seen.append(event.name)
                second.set()
    assert seen == ["then", "first"]
    assert [m["content"] for m in model.requests[1].messages[-2:]] == ["first", "then"]


async def test_a_call_without_an_id_gets_one_that_its_result_has_too() -> None:
    bare = ToolCallDelta(0, "{}", None, "thing")
    late = ToolCallDelta(0, "", "late", None)
    model = Model(calling(bare, late), calling(bare), answering("ok"))
    events = await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]))
    transcript = amount_to(events)
    ids = [made.id for made in transcript.tool_calls]
    assert ids == [result.call_id for result in transcript.tool_results]
    assert len(set(ids)) == 2
    assert [m["tool_calls"][0]["id"] for m in model.requests[2].messages if "tool_calls" in m] == ids


@pytest.mark.parametrize(("given", "sent"), [("", "{}"), ("{", '{"invalid":"{"}'), ("[1]", '{"invalid":"[1]"}')])
async def test_arguments_that_are_no_object_go_back_as_one(given: str, sent: str) -> None:
    model = Model(calling(call("thing", given)), answering("ok"))
    await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]))
    assert model.requests[1].messages[1]["tool_calls"][0]["function"]["arguments"] == sent


async def test_a_choice_that_forces_a_call_is_obeyed_once() -> None:
    model = Model(calling(call("thing")), answering("ok"))
    request = Request("m", REQUEST.messages, {"tool_choice": "required"})
    await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]), request)
    assert [made.params.get("tool_choice") for made in model.requests] == ["required", None]


async def test_without_tools_none_are_sent() -> None:
    model = Model(answering("ok"))
    assert (await collect(ToolLoop(model, [])))[-1] == Done("stop")
    assert "tools" not in model.requests[0].params


async def test_a_tool_of_the_requests_own_must_not_have_the_name_of_one_of_ours() -> None:
    theirs = {"type": "function", "function": {"name": "thing"}}
    with pytest.raises(CompletionError, match="'thing' is registered here, too"):
        await collect(ToolLoop(Model(), [Tool("thing", "", {}, print)]), Request("m", [], {"tools": [theirs]}))


async def test_the_text_that_a_request_goes_on_from_is_part_of_the_turn() -> None:
    model = Model(calling(call("thing"), text=" and so"), answering("ok"))
    await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]), dataclasses.replace(REQUEST, prefix="well,"))
    assert model.requests[1].messages[1]["content"] == "well, and so"
    assert model.requests[1].prefix == ""


async def test_what_a_later_turns_restart_makes_void_is_that_turn_alone() -> None:
    void: list[Event | CompletionError] = [TextDelta("bad "), Meta(restart=True, model="n"), *answering("good")]
    model = Model(calling(call("thing"), text="let me see. "), void)
    events = await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]))
    transcript = amount_to(events)
    assert transcript.text == "let me see. good"
    assert [made.name for made in transcript.tool_calls] == ["thing"]
    assert [result.result for result in transcript.tool_results] == [1]


async def test_what_was_void_in_an_earlier_turn_is_not_said_again() -> None:
    first: list[Event | CompletionError] = [
        TextDelta("bad "), Meta(restart=True), *calling(call("thing"), text="let me see. ")
    ]  # fmt: skip
    second: list[Event | CompletionError] = [TextDelta("bad "), Meta(restart=True), *answering("good")]
    events = await collect(ToolLoop(Model(first, second), [Tool("thing", "", {}, lambda: 1)]))
    assert amount_to(events).text == "let me see. good"


async def test_at_the_last_iteration_a_call_for_the_sender_ends_with_it_and_ours_is_run() -> None:
    theirs = {"type": "function", "function": {"name": "door"}}
    model = Model(calling(call("thing"), call("door", index=1)))
    ring = ToolLoop(model, [Tool("thing", "", {}, lambda: 1)], max_iterations=1)
    events = await collect(ring, Request("m", REQUEST.messages, {"tools": [theirs]}))
    assert [(result.name, result.result) for result in results(events)] == [("thing", 1)]
    assert events[-1] == Done("tool_calls")


async def test_a_failure_in_a_later_turn_tells_what_was_used() -> None:
    model = Model(calling(call("thing")), [TextDelta("12345678"), CompletionError("connection", "gone")])
    with pytest.raises(CompletionError) as caught:
        await collect(ToolLoop(model, [Tool("thing", "", {}, lambda: 1)]))
    used = caught.value.usage
    assert used is not None
    assert (used.completion_tokens, used.source) == (1 + 2, "estimated")


async def test_the_timeout_bounds_turns_and_tools_together() -> None:
    stopped = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    model = Model(calling(call("endless")))
    with pytest.raises(CompletionError) as caught:
        await collect(ToolLoop(model, [tool(endless)]), dataclasses.replace(REQUEST, timeout=0.05))
    assert (caught.value.code, caught.value.usage) == ("timeout_total", ONE)
    assert stopped.is_set()


async def test_calls_that_a_ring_further_in_has_answered_are_not_run_again() -> None:
    inner = ToolLoop(Model(calling(call("thing")), answering("ok")), [Tool("thing", "", {}, lambda: 1)])
    events = await collect(ToolLoop(inner, [Tool("other", "", {}, print)]))
    assert [result.result for result in results(events)] == [1]
    assert events[-1] == Done("stop")


async def test_an_answer_that_was_cut_off_calls_nothing() -> None:
    model = Model([call("thing", '{"a'), ONE, Done("length")])
    result = await AgentRunner(model, [Tool("thing", "", {}, print)], model="m").run("x")
    assert (result.finish_reason, result.tool_results) == ("length", ())
    assert result.messages[-1] == {"role": "assistant", "content": ""}


# AgentRunner


async def test_a_run_gives_text_usage_and_the_whole_conversation() -> None:
    model = Model(calling(call("thing"), text="let me see"), answering("it is 1"))
    result = await AgentRunner(model, [Tool("thing", "", {}, lambda: 1)], model="m").run("How many?", temperature=0)
    assert (result.text, result.finish_reason, result.iterations) == ("it is 1", "stop", 2)
    assert (result.usage, result.cost_usd) == (Usage(2, 2, 4, source="reported", cost_usd=1.0), 1.0)
    assert list(result.messages) == [
        {"role": "user", "content": "How many?"},
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                {"id": "id_thing_0", "type": "function", "function": {"name": "thing", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "id_thing_0", "content": "1"},
        {"role": "assistant", "content": "it is 1"},
    ]
    assert [request.params["temperature"] for request in model.requests] == [0, 0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"  # type: ignore[misc]


async def test_the_limit_of_iterations_is_a_finish_reason_and_leaves_no_call_open() -> None:
    model = Model(*[calling(call("thing")) for _ in range(2)])
    result = await AgentRunner(model, [Tool("thing", "", {}, lambda: 1)], 2, model="m").run("x")
    assert (result.finish_reason, result.iterations) == ("max_iterations", 2)
    assert [made.error for made in result.tool_results] == [None, "not run: the limit of iterations is reached (2)"]
    assert [message["role"] for message in result.messages] == ["user", "assistant", "tool", "assistant", "tool"]


async def test_a_stream_tells_where_iterations_begin() -> None:
    started = Started(provider="p", model="m")
    model = Model([started, *calling(call("thing"))], [started, *answering("ok")])
    runner = AgentRunner(model, [Tool("thing", "", {}, lambda: 1)], model="m")
    async with aclosing(runner.stream("x")) as stream:
        events = [event async for event in stream]
    kinds = [type(event) for event in events]
    assert kinds == [Step, Started, ToolCallDelta, ToolResult, Step, Started, TextDelta, Usage, Done]
    assert [event for event in events if isinstance(event, Step)] == [Step(1, None), Step(2, ONE)]


async def test_a_ring_has_no_steps() -> None:
    events = await collect(ToolLoop(Model(answering("ok")), []))
    assert not any(isinstance(event, Step) for event in events)


class Client:
    """As `OpenAIClient` looks from here."""

    model = "m"

    def __init__(self, inner: Model) -> None:
        self.inner = inner

    def events(self, messages: Any, **params: Any) -> AsyncGenerator[Event, None]:
        return self.inner.stream(Request(self.model, messages, params))


async def test_a_client_makes_the_requests() -> None:
    model = Model(calling(call("thing")), answering("ok"))
    result = await AgentRunner(Client(model), [Tool("thing", "", {}, lambda: 1)]).run("x", seed=1, stall_timeout=3.0)
    assert result.text == "ok"
    first, second = model.requests
    assert {name: first.params[name] for name in ("seed", "stall_timeout")} == {"seed": 1, "stall_timeout": 3.0}
    assert len(second.messages) == 3


class Blocking:
    model = "m"

    def invoke(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: AgentRunner(Model(), []), "model: say which"),
        (lambda: AgentRunner(Client(Model()), [], model="m"), "model: the client has its own"),
        (lambda: AgentRunner(Blocking(), []), "must be an asynchronous one"),  # type: ignore[arg-type]
        (lambda: AgentRunner(Model(), [], 0, model="m"), "max_iterations: must be"),
        (lambda: ToolLoop(Model(), [Tool("a", "", {}, print), Tool("a", "", {}, print)]), "two have the name a"),
    ],
)
def test_a_runner_that_cannot_work_is_refused(make: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        make()


async def test_a_tool_that_ignores_its_cancel_holds_up_nobody() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            begun.set()
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(collect(ToolLoop(Model(calling(call("stubborn"))), [tool(stubborn)])))
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(20):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    release.set()
    await asyncio.sleep(0)
