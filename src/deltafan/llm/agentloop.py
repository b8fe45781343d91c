"""One run of a model with its tools: the conversation as it grows, and the events of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import orjson

from deltafan.coalesce import coalesce
from deltafan.errors import CompletionError
from deltafan.events import Done, Event, FinishReason, Meta, TextDelta, ToolCallDelta, ToolResult, Usage
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions, Started
from deltafan.llm.toolrun import failed, run_call, stop
from deltafan.llm.tools import Tool
from deltafan.llm.usage import estimate
from deltafan.transcript import ToolCall, Transcript

MAX_ITERATIONS: Final = 10
"""Requests to the model for one answer."""
MAX_CALLS: Final = 128
"""Calls of one turn that are run. Those beyond it are answered with an error."""


@dataclass(frozen=True, slots=True)
class Step(Event):
    """An iteration begins: a request to the model. It stays inside the process: no log or sink ever carries it."""

    type: ClassVar[str] = "step"
    iteration: int = 1
    usage: Usage | None = None
    """The sum over the iterations before."""


class AgentLoop:
    """Drive it with `events()`, once; its attributes say how far it has come."""

    def __init__(
        self, inner: Completions, tools: Mapping[str, Tool], request: Request, max_iterations: int = MAX_ITERATIONS
    ) -> None:
        self.messages: list[Mapping[str, Any]] = list(request.messages)
        """The conversation, with every answer and every result so far."""
        self.results: list[ToolResult] = []
        """Of all iterations, as they came."""
        self.usage: Usage | None = None
        self.iteration = 0
        self.turn = Transcript()
        """The answer of this iteration."""
        self.finish_reason: FinishReason = "error"
        self._inner = inner
        self._tools = tools
        self._request = request
        self._max_iterations = max_iterations
        self._foreign: frozenset[str] = frozenset()
        self._shown: list[Event] = []  # of the iterations before, merged
        self._ends: float | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`; before each iteration, a `Step`."""
        self._begin()
        while True:
            self.iteration += 1
            yield Step(self.iteration, self.usage)
            async with aclosing(self._ask()) as events:
                async for event in events:
                    yield event
            calls = self._calls()
            self.messages.append(self._assistant(calls))
            ours = [call for call in calls if call.name not in self._foreign]
            theirs = len(calls) > len(ours)
            last = self.iteration == self._max_iterations and not theirs
            async with aclosing(self._results(ours, run=not last)) as results:
                async for result in results:
                    self.results.append(result)
                    self._shown.append(result)
                    yield result
            if theirs or last or not calls:
                break
            self._request = self._next_request()
        if calls:
            self.finish_reason = "tool_calls" if theirs else "max_iterations"
        if self.usage is not None:
            yield self.usage
        yield Done(self.finish_reason)

    def _begin(self) -> None:
        request = self._request
        theirs = request.params.get("tools") or []
        if not isinstance(theirs, list | tuple):
            raise CompletionError("bad_request", "params.tools: must be a list")
        self._foreign = frozenset(name for one in theirs if isinstance(name := _name(one), str))
        twice = sorted(self._foreign & self._tools.keys())
        if twice:
            raise CompletionError("bad_request", f"params.tools: a tool {twice[0]!r} is registered here, too")
        if self._tools:
            schemas = [tool.schema() for tool in self._tools.values()]
            self._request = replace(request, params={**request.params, "tools": [*theirs, *schemas]})
        if request.timeout is not None:
            self._ends = asyncio.get_running_loop().time() + request.timeout

    def _next_request(self) -> Request:
        params = dict(self._request.params)
        if params.get("tool_choice") not in (None, "auto", "none"):
            del params["tool_choice"]  # it has been obeyed; a model that must call could never answer
        return replace(self._request, messages=list(self.messages), params=params, prefix="", prompt_tokens=None)

    async def _ask(self) -> AsyncGenerator[Event, None]:
        """One turn of the model: its deltas. What it amounts to is in `turn`, `usage` and `finish_reason`."""
        request = self._request
        if self.iteration > 1:  # the first turn has all the time, and tells of it as it was given
            request = replace(request, timeout=self._left())
        self.turn = Transcript(text=request.prefix)
        said: list[Event] = [TextDelta(request.prefix)] if request.prefix else []
        ids = _Ids(self.iteration)
        done = False
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    match event:
                        case Usage():
                            self.usage = event if self.usage is None else self.usage + event
                        case Done():
                            self.finish_reason, done = event.finish_reason, True
                        case Meta():
                            self.turn.add(event)
                            yield event
                            if not event.continued:  # void is this turn's output only: the rest is said again
                                said.clear()
                                for earlier in self._shown:
                                    yield earlier
                        case Started():
                            yield event
                        case _:
                            event = ids.completed(event)
                            self.turn.add(event)
                            said.append(event)
                            yield event
        except CompletionError as error:
            if self.usage is not None:
                error.usage = self.usage + (error.usage or estimate(request.messages, _chars(said)))
            raise
        if not done:
            raise CompletionError("malformed_stream", "the completion ended without an end")
        self._shown.extend(coalesce(said))

    def _calls(self) -> list[ToolCall]:
        """What this turn calls, and nobody further in has answered. An answer that was cut off calls nothing."""
        if self.finish_reason not in ("tool_calls", "stop"):
            return []
        answered = {result.call_id for result in self.turn.tool_results}
        return [call for call in self.turn.tool_calls if call.id not in answered]

    def _assistant(self, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """This turn's message."""
        turn = self.turn
        message: dict[str, Any] = {"role": "assistant", "content": turn.text or (None if calls or turn.refusal else "")}
        if turn.refusal:
            message["refusal"] = turn.refusal
        if calls:
            message["tool_calls"] = [
                {
                    "id": _id(call, self.iteration),
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call)},
                }
                for call in calls
            ]
        return message

    async def _results(self, calls: Sequence[ToolCall], *, run: bool) -> AsyncGenerator[ToolResult, None]:
        """The result of each call, as it comes. They go to the conversation in the order of the calls."""
        if not calls:
            return
        ids = [_id(call, self.iteration) for call in calls]
        limit = MAX_CALLS if run else 0
        why = (
            f"one turn may call {MAX_CALLS}"
            if run
            else f"not run: the limit of iterations is reached ({self._max_iterations})"
        )
        results = {place: failed(ids[place], call.name, why) for place, call in enumerate(calls) if place >= limit}

        running = {
            asyncio.create_task(run_call(self._tools, call, ids[place])): place
            for place, call in enumerate(calls[:limit])
        }
        try:
            while running:
                done, _ = await asyncio.wait(running, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=running.__getitem__):
                    place = running.pop(task)
                    results[place] = task.result()
                    yield results[place]
        finally:
            await stop(*running)
        for place in range(limit, len(calls)):
            yield results[place]
        self.messages.extend(_tool_message(results[place]) for place in range(len(calls)))

    def _left(self) -> float | None:
        """Seconds that are left of the whole."""
        if self._ends is None:
            return None
        left = self._ends - asyncio.get_running_loop().time()
        if left <= 0:
            raise self._too_late()
        return left

    def _too_late(self) -> CompletionError:
        error = CompletionError("timeout_total", f"all turns together took longer than {self._request.timeout:g} s")
        error.usage = self.usage
        return error


class _Ids:
    """Gives calls an id whose provider gave none: results are matched with calls by it, also by subscribers."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration
        self._made: dict[int, str] = {}

    def completed(self, event: Event) -> Event:
        if not isinstance(event, ToolCallDelta) or event.choice != 0:
            return event
        if event.name is not None and event.call_id is None:
            made = self._made[event.index] = _made_id(self._iteration, event.index)
            return replace(event, call_id=made)
        if event.name is None and event.call_id is not None and event.index in self._made:
            return replace(event, call_id=None)  # it comes late: the call has one
        return event


def _made_id(iteration: int, index: int) -> str:
    return f"call_{iteration}_{index}"


def _id(call: ToolCall, iteration: int) -> str:
    return call.id or _made_id(iteration, call.index)


def _name(tool: Any) -> Any:
    """The name of a tool of a request's own, in the shape of chat completions or of the Responses API."""
    if not isinstance(tool, Mapping):
        return None
    inner = tool.get("function") or tool.get("custom") or tool
    return inner.get("name") if isinstance(inner, Mapping) else None


def _chars(said: Sequence[Event]) -> int:
    return sum(len(getattr(event, "text", "") or getattr(event, "arguments", "")) for event in said)


def _arguments(call: ToolCall) -> str:
    """As a provider takes them back: some refuse a conversation whose arguments are no JSON object."""
    try:
        if isinstance(orjson.loads(call.arguments), dict):
            return call.arguments
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps({"invalid": call.arguments}).decode() if call.arguments.strip() else "{}"


def _tool_message(result: ToolResult) -> dict[str, Any]:
    content = {"error": result.error} if result.error is not None else result.result
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return {"role": "tool", "tool_call_id": result.call_id, "content": text}
