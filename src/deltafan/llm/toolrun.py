"""Running what a model calls: one call in, one result out, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic import ValidationError as PydanticError

from deltafan.events import ToolResult
from deltafan.llm.tools import Tool
from deltafan.transcript import ToolCall

MAX_RESULT: Final = 64 * 1024
"""Bytes of a result, as JSON, that go to the model and to subscribers."""
MAX_ERROR: Final = 500
"""Characters of an error."""
_LISTED: Final = 20
"""Names that a model is told when it calls what is not there."""
GRACE: Final = 1.0
"""Seconds that an async function may take to end once it has been cancelled. Then it is left to itself."""


async def run_call(tools: Mapping[str, Tool], call: ToolCall, call_id: str) -> ToolResult:
    """Run one call. What goes wrong is the result: the model is told, without a traceback.

    Raises nothing but its own cancellation, which cancels an async function; a plain one's thread is left behind.
    """
    tool = tools.get(call.name)
    if tool is None:
        there = ", ".join([*list(tools)[:_LISTED], *(["…"] if len(tools) > _LISTED else [])])
        return failed(call_id, call.name, f"there is no tool {call.name!r}; there is: {there or 'none'}")
    try:
        arguments = orjson.loads(call.arguments or "{}")
        if not isinstance(arguments, dict):
            return failed(call_id, call.name, "the arguments must be a JSON object")
        if tool.arguments is not None:
            arguments = tool.arguments.read(arguments)
    except orjson.JSONDecodeError as error:
        return failed(call_id, call.name, f"the arguments are not JSON: {error}")
    except PydanticError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:5]
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found)
        return failed(call_id, call.name, f"wrong arguments: {problems}")
    except Exception as error:  # a validator that an operator wrote may raise anything
        return failed(call_id, call.name, _words(error))
    return await _answer(tool, arguments, call_id)


async def _answer(tool: Tool, arguments: Mapping[str, Any], call_id: str) -> ToolResult:
    task = asyncio.create_task(_run(tool.func, arguments), name=f"deltafan-tool-{tool.name}")
    try:
        await asyncio.wait({task}, timeout=tool.timeout)
    finally:
        late = not task.done()
        await stop(task)
    if late:
        return failed(call_id, tool.name, f"the tool took longer than {tool.timeout:g} s")
    if task.cancelled():
        return failed(call_id, tool.name, "the tool was cancelled")
    error = task.exception()
    if error is not None:
        return failed(call_id, tool.name, _words(error))
    try:
        encoded = _encoded(task.result())
    except Exception as problem:  # it nests deeper than JSON goes, or its `__str__` raises
        return failed(call_id, tool.name, _words(problem))
    if len(encoded) > MAX_RESULT:
        return failed(call_id, tool.name, f"the result is {len(encoded):,} bytes; at most {MAX_RESULT:,} are taken")
    return ToolResult(call_id, tool.name, result=orjson.loads(encoded)["result"])


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs of these tasks, and wait for their end, for `GRACE` at most."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
        task.add_done_callback(_look)
    if running:
        await asyncio.wait(running, timeout=GRACE)


def _look(task: asyncio.Task[Any]) -> None:
    """An error that nobody waits for any more is nobody's: without this, asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _encoded(result: Any) -> bytes:
    """The result as JSON, as deep as its event will be; as text, what JSON cannot say."""
    try:
        return orjson.dumps({"result": result}, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        if "ecursion" in str(error):
            raise
        return orjson.dumps({"result": str(result).encode("utf-8", "replace").decode()})


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            return value.model_dump(mode="json")
        case set() | frozenset():
            return list(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value).decode("utf-8", "replace")
        case _:
            return str(value)


async def _run(func: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        if inspect.iscoroutinefunction(func):
            return await func(**arguments)
        result = await _in_thread(partial(func, **arguments))
        # Of an object whose `__call__` is a coroutine function.
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, KeyboardInterrupt) as error:  # a tool must not end the worker
        raise RuntimeError(f"it raised {error!r}") from None


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


def failed(call_id: str, name: str, problem: str) -> ToolResult:
    """What the model and the subscribers are told; UTF-8 must be able to carry it."""
    return ToolResult(call_id, name, error=problem.encode("utf-8", "replace").decode()[:MAX_ERROR])


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its `__str__` raises
        return type(error).__name__
