"""Tools that are run here: typed functions as tools, and the ring that runs what the model calls."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, create_model
from pydantic import ValidationError as PydanticError

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.events import Done, Event, ToolResult, Usage
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions
from deltafan.llm.usage import add
from deltafan.transcript import ToolCall, Transcript

MAX_ITERATIONS = 10
"""Requests to the model for one answer."""
MAX_CALLS = 128
"""Calls of one turn that are run. Those beyond it are answered with an error."""
MAX_RESULT = 64 * 1024
"""Bytes of a result, as JSON, that go to the model and to subscribers."""
_MAX_ERROR = 500
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What chat completions take as a function's name."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call.

    :param parameters: JSON Schema of its arguments.
    :param func: called with the arguments by name; a coroutine function, or a plain one, which runs in a thread.
    :param timeout: seconds that a call may take. The thread of a plain function cannot be stopped; its result is
        dropped.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    func: Callable[..., Any]
    timeout: float = 30.0
    arguments: type[BaseModel] | None = field(default=None, repr=False)
    """Validates the arguments, where the tool was made from a typed function."""

    def schema(self) -> dict[str, Any]:
        """As chat completions take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def tool(func: Callable[..., Any], *, name: str | None = None, timeout: float = 30.0) -> Tool:
    """Make a tool of a typed function: its name, its docstring and its annotated parameters.

    :raises ConfigurationError: no model could call the name, a parameter has no annotation or no name, or no schema
        follows from it.
    """
    name = name or str(getattr(func, "__name__", type(func).__name__))
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"tool {name}: give a name of 1 to 64 letters, digits, _ or -")
    fields: dict[str, Any] = {}
    try:
        signature = inspect.signature(func, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"tool {name}: its parameters cannot be read: {error}") from None
    for parameter in signature.parameters.values():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.annotation is parameter.empty or not by_name:
            raise ConfigurationError(
                f"tool {name}: parameter {parameter.name!r} needs a type annotation, and to be given by name"
            )
        if parameter.name.startswith("_"):  # a model's private attribute, of which no schema tells
            raise ConfigurationError(f"tool {name}: parameter {parameter.name!r} must not begin with _")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        parameters = model.model_json_schema()
    except Exception as error:  # pydantic raises several kinds for types it cannot describe
        raise ConfigurationError(
            f"tool {name}: no schema for its parameters: {str(error).partition(chr(10))[0]}"
        ) from None
    parameters.pop("title", None)
    return Tool(name, inspect.getdoc(func) or "", parameters, func, timeout, model)


class ToolLoop:
    """A ring that runs the tools the model calls and asks again with their results, until it answers without calls.

    Every event of every turn is passed on, each call's `ToolResult` after the turn that asked for it; usage is summed.
    Calls of one turn run at once. What goes wrong in a tool is told to the model. A call of a tool that the request
    itself brought is for its sender to run: the answer then ends with `tool_calls`, as it does after `MAX_ITERATIONS`.
    """

    def __init__(self, inner: Completions, tools: Sequence[Tool], *, max_iterations: int = MAX_ITERATIONS) -> None:
        self._inner = inner
        self._tools = {tool.name: tool for tool in tools}
        self._max_iterations = max_iterations

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        theirs = request.params.get("tools") or []
        if not isinstance(theirs, list | tuple):
            raise CompletionError("bad_request", "params.tools: must be a list")
        functions = [t.get("function") for t in theirs if isinstance(t, Mapping)]
        foreign = [f.get("name") for f in functions if isinstance(f, Mapping)]
        params = {**request.params, "tools": [*theirs, *(t.schema() for t in self._tools.values())]}
        request = replace(request, params=params)
        used: Usage | None = None
        for iteration in range(1, self._max_iterations + 1):
            turn = Transcript()
            done = Done("error")
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Usage):
                        used = event if used is None else add(used, event)
                    elif isinstance(event, Done):
                        done = event
                    else:
                        turn.add(event)
                        yield event
            calls = turn.tool_calls
            ours = bool(calls) and not any(call.name in foreign for call in calls)
            if done.finish_reason not in ("tool_calls", "stop") or not ours or iteration == self._max_iterations:
                if used is not None:
                    yield used
                yield done
                return
            results = await asyncio.gather(*(self._call(call) for call in calls[:MAX_CALLS]))
            results += [_failed(_id(call), call.name, f"one turn may call {MAX_CALLS}") for call in calls[MAX_CALLS:]]
            for result in results:
                yield result
            messages = [*request.messages, _assistant(turn), *(_tool_message(result) for result in results)]
            request = replace(request, messages=messages, prefix="")

    async def _call(self, call: ToolCall) -> ToolResult:
        call_id = _id(call)
        tool = self._tools.get(call.name)
        if tool is None:
            return _failed(call_id, call.name, f"there is no tool {call.name!r}")
        try:
            arguments = orjson.loads(call.arguments or "{}")
            if not isinstance(arguments, dict):
                return _failed(call_id, call.name, "the arguments must be a JSON object")
            if tool.arguments is not None:
                model = tool.arguments.model_validate(arguments)
                arguments = {name: getattr(model, name) for name in tool.arguments.model_fields}
        except orjson.JSONDecodeError as error:
            return _failed(call_id, call.name, f"the arguments are not JSON: {error}")
        except PydanticError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            return _failed(call_id, call.name, f"wrong arguments: {problems}")
        except Exception as error:  # a validator that an operator wrote may raise anything
            return _failed(call_id, call.name, f"{type(error).__name__}: {error}")
        limit = asyncio.timeout(tool.timeout)
        try:
            async with limit:
                result = await _run(tool.func, arguments)
            encoded = orjson.dumps({"result": result}, default=str)  # as deep as the event will be: depth has a limit
        except Exception as error:  # a user's function may raise anything; the model is told, without a traceback
            if limit.expired() and isinstance(error, TimeoutError):
                return _failed(call_id, call.name, f"the tool took longer than {tool.timeout:g} s")
            return _failed(call_id, call.name, f"{type(error).__name__}: {error}")
        if len(encoded) > MAX_RESULT:
            return _failed(
                call_id, call.name, f"the result is {len(encoded):,} bytes; at most {MAX_RESULT:,} are taken"
            )
        return ToolResult(call_id, call.name, result=orjson.loads(encoded)["result"])


async def _run(func: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(func):
        return await func(**arguments)
    result = await _in_thread(partial(func, **arguments))
    # Of an object whose `__call__` is a coroutine function.
    return await result if inspect.isawaitable(result) else result


async def _in_thread(func: Callable[[], Any]) -> Any:
    """In a thread of its own. In the loop's pool, a few functions that hang would hold up what else is done there (the
    resolving of names, for one), and the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: Exception | None) -> None:
        if done.done():  # it took too long
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def call() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = context.run(func)
        except StopIteration:  # no future carries it
            error = RuntimeError("it raised StopIteration")
        except Exception as raised:
            error = raised
        except BaseException as raised:  # a tool's `sys.exit()` must not end the worker
            error = RuntimeError(f"it raised {raised!r}")
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=call, name="deltafan-tool", daemon=True).start()
    return await done


def _id(call: ToolCall) -> str:
    return call.id or f"call_{call.index}"


def _failed(call_id: str, name: str, problem: str) -> ToolResult:
    """What the model and the subscribers are told; UTF-8 must be able to carry it."""
    return ToolResult(call_id, name, error=problem.encode("utf-8", "replace").decode()[:_MAX_ERROR])


def _assistant(turn: Transcript) -> dict[str, Any]:
    calls = [
        {
            "id": _id(call),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in turn.tool_calls
    ]
    return {"role": "assistant", "content": turn.text or None, "tool_calls": calls}


def _tool_message(result: ToolResult) -> dict[str, Any]:
    content = {"error": result.error} if result.error is not None else result.result
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    return {"role": "tool", "tool_call_id": result.call_id, "content": text}
