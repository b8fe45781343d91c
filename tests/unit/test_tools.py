"""Tools that the worker runs: the loop that runs what the model calls, and the way of a result to a follower."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script, parse_faults, running
from deltafan.devserver.provider import ToolCall as Scripted
from deltafan.errors import CompletionError, JobFailed
from deltafan.events import Done, Event, TextDelta, ToolCallDelta, ToolResult, Usage
from deltafan.llm import Completions, Request
from deltafan.llm.agent import ToolLoop
from deltafan.llm.toolrun import MAX_RESULT
from deltafan.llm.tools import Tool, tool
from tests.conftest import StartWorker, completions_of
from tests.oracle import check_whole


async def weather(city: str, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """The weather of a city."""
    return {"city": city, "unit": unit, "degrees": 21}


def _request(**params: Any) -> Request:
    return Request("m", [{"role": "user", "content": "How warm is it?"}], params)


class Recorder:
    """A ring that remembers what it was asked."""

    def __init__(self, inner: Completions) -> None:
        self.inner = inner
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        async with aclosing(self.inner.stream(request)) as events:
            async for event in events:
                yield event


async def _stream(
    tools: Sequence[Tool], calls: Sequence[Scripted], request: Request | None = None
) -> tuple[list[Event], list[Request]]:
    """The events of a loop against the scripted provider, which calls and then answers; and what it was asked."""
    async with running(Script(tool_calls=tuple(calls))) as provider, completions_of(provider) as (completions, _):
        recorder = Recorder(completions)
        async with aclosing(ToolLoop(recorder, tools).stream(request or _request())) as stream:
            events = [event async for event in stream]
        assert _text(events) == provider.requests[-1].text
        return events, recorder.requests


def _results(events: Sequence[Event]) -> list[ToolResult]:
    return [event for event in events if isinstance(event, ToolResult)]


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# ToolLoop


async def test_the_model_gets_the_result_and_answers() -> None:
    events, requests = await _stream([tool(weather)], [Scripted("weather", '{"city": "Oslo"}')])
    assert _text(events)
    [result] = _results(events)
    assert (result.name, result.result) == ("weather", {"city": "Oslo", "unit": "C", "degrees": 21})
    kinds = [type(event) for event in events]
    assert kinds.index(ToolCallDelta) < kinds.index(ToolResult) < kinds.index(TextDelta)
    assert kinds[-2:] == [Usage, Done]
    assert (kinds.count(Usage), kinds.count(Done)) == (1, 1)
    assert events[-1] == Done("stop")
    first, second = requests
    assert [made["function"]["name"] for made in first.params["tools"]] == ["weather"]
    asked, called, told = second.messages
    assert asked["role"] == "user"
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert told == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": told["content"]}
    assert result.call_id == told["tool_call_id"]
    assert orjson.loads(told["content"]) == result.result


async def test_usage_is_the_sum_over_the_turns() -> None:
    events, _ = await _stream([tool(weather)], [Scripted("weather", '{"city": "Oslo"}')])
    plain, _ = await _stream([tool(weather)], [])
    [summed] = [event for event in events if isinstance(event, Usage)]
    [single] = [event for event in plain if isinstance(event, Usage)]
    assert summed.source == "reported"
    assert summed.prompt_tokens is not None
    assert single.prompt_tokens is not None
    assert summed.prompt_tokens > 2 * single.prompt_tokens - 1


async def test_calls_of_one_turn_run_at_once() -> None:
    together = asyncio.Barrier(3)

    async def meet(n: int) -> int:
        await together.wait()
        return n

    events, _ = await _stream([tool(meet, timeout=5)], [Scripted("meet", f'{{"n": {n}}}') for n in range(3)])
    assert sorted((result.result, result.error) for result in _results(events)) == [(0, None), (1, None), (2, None)]
    assert _text(events)


async def test_a_plain_function_runs_in_a_thread_of_its_own() -> None:
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    events, _ = await _stream([tool(where)], [Scripted("where")])
    assert [result.result for result in _results(events)] == [False]


async def test_an_object_whose_call_is_a_coroutine_function_is_awaited() -> None:
    class Doubler:
        async def __call__(self, n: int) -> int:
            return 2 * n

    events, _ = await _stream([tool(Doubler())], [Scripted("Doubler", '{"n": 4}')])
    assert [result.result for result in _results(events)] == [8]


async def slow() -> None:
    await asyncio.Event().wait()


async def broken() -> None:
    raise LookupError("no such city: \ud800")


async def impatient() -> None:
    raise TimeoutError("the upstream gave up")


async def huge() -> str:
    return "x" * MAX_RESULT


async def nameless() -> None:
    class Nameless(ValueError):
        def __str__(self) -> str:
            raise LookupError

    Nameless.__name__ = "ValueError"
    raise Nameless


async def leaving() -> None:
    sys.exit(3)


async def stubborn() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("func", "arguments", "problem"),
    [
        (slow, "{}", "the tool took longer than 0.05 s"),
        (broken, "{}", "LookupError: no such city: ?"),
        (impatient, "{}", "TimeoutError: the upstream gave up"),
        (huge, "{}", "the result is 65,5"),
        (nameless, "{}", "ValueError"),
        (leaving, "{}", "RuntimeError: it raised SystemExit(3)"),
        (stubborn, "{}", "the tool took longer than 0.05 s"),
        (weather, "{", "the arguments are not JSON: "),
        (weather, "[1]", "the arguments must be a JSON object"),
        (weather, "{}", "wrong arguments: city: Field required"),
        (weather, '{"city": 5}', "wrong arguments: city: Input should be a valid string"),
        (weather, '{"city": "Oslo", "unit": "K"}', "wrong arguments: unit: "),
        (weather, '{"city": "Oslo", "country": "NO"}', "wrong arguments: country: Extra inputs"),
    ],
)
async def test_what_goes_wrong_is_told_to_the_model(func: Any, arguments: str, problem: str) -> None:
    events, requests = await _stream([tool(func, timeout=0.05)], [Scripted(func.__name__, arguments)])
    [result] = _results(events)
    assert result.result is None
    assert result.error is not None
    assert result.error.startswith(problem)
    assert len(result.error) <= 500
    assert orjson.loads(requests[1].messages[-1]["content"]) == {"error": result.error}
    assert _text(events)


async def test_a_call_of_a_tool_that_nobody_offered_is_told_to_the_model() -> None:
    events, _ = await _stream([tool(weather)], [Scripted("launch_rocket")])
    assert [result.error for result in _results(events)] == ["there is no tool 'launch_rocket'; there is: weather"]
    assert _text(events)


async def test_a_call_of_the_requests_own_tool_is_for_its_sender() -> None:
    theirs = {"type": "function", "function": {"name": "open_door", "parameters": {"type": "object"}}}
    calls = [Scripted("weather", '{"city": "Oslo"}'), Scripted("open_door")]
    events, requests = await _stream([tool(weather)], calls, _request(tools=[theirs]))
    assert [result.name for result in _results(events)] == ["weather"]
    assert events[-1] == Done("tool_calls")
    [request] = requests
    assert [made["function"]["name"] for made in request.params["tools"]] == ["open_door", "weather"]


async def test_a_model_that_calls_for_ever_is_ended() -> None:
    class Caller:
        """A model that has only one idea."""

        turns = 0

        async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            self.turns += 1
            yield ToolCallDelta(0, '{"city": "Oslo"}', f"call_{self.turns}", "weather")
            yield Usage(1, 1, 2, source="reported")
            yield Done("tool_calls")

    caller = Caller()
    async with aclosing(ToolLoop(caller, [tool(weather)], max_iterations=3).stream(_request())) as stream:
        events = [event async for event in stream]
    assert caller.turns == 3
    assert [(result.call_id, result.error) for result in _results(events)] == [
        ("call_1", None),
        ("call_2", None),
        ("call_3", "not run: the limit of iterations is reached (3)"),
    ]
    assert events[-2:] == [Usage(3, 3, 6, source="reported"), Done("max_iterations")]


class FailsLater(Recorder):
    """A model that fails in its second turn."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        if self.requests:
            raise CompletionError("quota", "no money left")
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                yield event


async def test_a_provider_that_fails_in_a_later_turn_fails_the_stream() -> None:
    seen: list[Event] = []

    async def consume(completions: Completions) -> None:
        async with aclosing(ToolLoop(completions, [tool(weather)]).stream(_request())) as stream:
            async for event in stream:
                seen.append(event)  # noqa: PERF401 - what came before the failure counts

    script = Script(tool_calls=(Scripted("weather", '{"city": "Oslo"}'),))
    async with running(script) as provider, completions_of(provider) as (completions, _):
        with pytest.raises(CompletionError, match="no money left"):
            await consume(FailsLater(completions))
    assert isinstance(seen[-1], ToolResult)


async def test_closing_the_stream_stops_a_tool_that_runs() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def consume(completions: Completions) -> None:
        async with aclosing(ToolLoop(completions, [tool(endless)]).stream(_request())) as stream:
            async for _ in stream:
                continue

    script = Script(tool_calls=(Scripted("endless"),))
    async with running(script) as provider, completions_of(provider) as (completions, _):
        task = asyncio.create_task(consume(completions))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert stopped.is_set()
    assert task.cancelled()


# the whole way


async def test_a_jobs_tool_result_reaches_its_follower(queue: AsyncQueue, start_worker: StartWorker) -> None:
    calls = (Scripted("weather", '{"city": "Oslo"}'),)
    async with running(Script(tool_calls=calls)) as scripted:
        await start_worker(scripted, services={"tools": {"weather": tool(weather)}})
        job = await queue.enqueue(model="m", prompt="x", tools=["weather"])
        events = [event async for event in job.events()]
        transcript = check_whole(events, scripted.requests[-1].text)
    [result] = transcript.tool_results
    assert (result.name, result.result) == ("weather", {"city": "Oslo", "unit": "C", "degrees": 21})
    assert [(call.id, call.name, call.arguments) for call in transcript.tool_calls] == [
        (result.call_id, "weather", '{"city": "Oslo"}')
    ]
    assert (await job.status()).finish_reason == "stop"


async def test_a_job_whose_tool_the_worker_does_not_have_says_which(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    await start_worker(services={"tools": {"weather": tool(weather)}})
    job = await queue.enqueue(model="m", prompt="x", tools=["launch_rocket"])
    with pytest.raises(JobFailed, match=r"no launch_rocket \(it has: weather\)"):
        await job.result(timeout=5)


async def test_a_job_whose_turns_are_each_cut_once_starts_again_each_time(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    calls = (Scripted("weather", '{"city": "Oslo"}'),)
    script = Script(tool_calls=calls, faults=parse_faults("cut=6*1"))
    async with running(script) as scripted:
        await start_worker(scripted, services={"tools": {"weather": tool(weather)}})
        job = await queue.enqueue(model="m", prompt="x", tools=["weather"])
        transcript = check_whole([event async for event in job.events()], scripted.requests[-1].text)
    assert (transcript.attempt, len(transcript.tool_results)) == (3, 1)
