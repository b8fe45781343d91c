"""The loop of a model and its tools: ask, run what it calls, ask again with the results, until it answers.

`ToolLoop` is a ring of completions; `AgentRunner` is the same for a program, which wants a result and the history.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from deltafan.errors import ConfigurationError
from deltafan.events import Event, FinishReason, ToolResult, Usage
from deltafan.llm.agentloop import MAX_ITERATIONS, AgentLoop, Step
from deltafan.llm.checks import check_seconds, invalid, is_list
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions
from deltafan.llm.tools import Tool, as_tool

_LIMITS = ("timeout", "first_token_timeout", "stall_timeout")


class ToolLoop:
    """A ring that runs the tools the model calls and asks again with their results, until it answers without calls.

    Every event of every turn is passed on, each call's `ToolResult` as it comes, after the turn that asked for it;
    usage is summed. Calls of one turn run at once. What goes wrong in a tool is told to the model. A call of a tool
    that the request itself brought is for its sender to run: the answer then ends with `tool_calls`. A model that
    still calls at the last iteration is not obeyed: the answer ends with `max_iterations`. `Request.timeout` bounds all
    turns and their tools together.
    """

    def __init__(
        self,
        inner: Completions,
        tools: Sequence[Tool | Callable[..., Any]],
        *,
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        self._inner = inner
        self._tools = _by_name(tools)
        self._max_iterations = _checked(max_iterations)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`."""
        loop = AgentLoop(self._inner, self._tools, request, self._max_iterations)
        async with aclosing(loop.events()) as events:
            async for event in events:
                if not isinstance(event, Step):
                    yield event


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """What a run came to."""

    text: str
    """Of the last answer."""
    reasoning: str
    refusal: str
    finish_reason: FinishReason
    """The last answer's; `tool_calls`: what was called is the caller's to run; `max_iterations`: it called on."""
    usage: Usage
    """Of all iterations together."""
    iterations: int
    """Requests to the model."""
    messages: tuple[Mapping[str, Any], ...]
    """The whole conversation, in OpenAI's shape, the last answer included: add a message and run again."""
    tool_results: tuple[ToolResult, ...]
    """Of all iterations, in the order in which they came."""

    @property
    def cost_usd(self) -> float | None:
        """US dollars of all iterations together; `None` where the price of one is not known."""
        return self.usage.cost_usd


@runtime_checkable
class Client(Protocol):
    """An asynchronous client of one model, such as `OpenAIClient`."""

    model: str

    def events(self, messages: Sequence[Mapping[str, Any]], **params: Any) -> AsyncGenerator[Event, None]:
        """The events of an answer, `Started` first; with parameters of chat completions, and the three limits."""
        ...


class AgentRunner:
    """Runs a model with tools: `await AgentRunner(client, [look_up]).run("How warm is it in Oslo?")`.

    :param client: a client, whose model, limits and cache then serve every iteration; or any `Completions`.
    :param tools: tools, or typed functions to make them of.
    :param max_iterations: requests to the model for one run.
    :param model: what to ask a `Completions` for. A client has its own.
    :raises ConfigurationError: two tools have one name, a function makes no tool, or the model is missing.
    """

    def __init__(
        self,
        client: Client | Completions,
        tools: Sequence[Tool | Callable[..., Any]],
        max_iterations: int = MAX_ITERATIONS,
        *,
        model: str | None = None,
    ) -> None:
        self._tools = _by_name(tools)
        self._max_iterations = _checked(max_iterations)
        self._completions: Completions
        if isinstance(client, Client):
            if model is not None:
                raise ConfigurationError("model: the client has its own")
            self._completions, self._model = _OfClient(client), client.model
        elif hasattr(client, "invoke"):
            raise ConfigurationError("client: must be an asynchronous one, such as OpenAIClient")
        elif model is None:
            raise ConfigurationError("model: say which model the completions are to be asked for")
        else:
            self._completions, self._model = client, model

    async def run(self, messages: Sequence[Mapping[str, Any]] | str, **params: Any) -> AgentResult:
        """Ask and run tools until the model has answered.

        :param messages: a conversation in OpenAI's shape, or one user message.
        :param params: of chat completions. `timeout` bounds the whole run; `first_token_timeout` and `stall_timeout`
            each request.
        :raises ValidationError: the messages or a limit are not what they must be.
        :raises CompletionError: a request failed; its `usage` is what was used until then.
        """
        loop = self._loop(messages, params)
        async with aclosing(loop.events()) as events:
            async for _ in events:
                continue
        return AgentResult(
            text=loop.turn.text,
            reasoning=loop.turn.reasoning,
            refusal=loop.turn.refusal,
            finish_reason=loop.finish_reason,
            usage=loop.usage or Usage(),
            iterations=loop.iteration,
            messages=tuple(loop.messages),
            tool_results=tuple(loop.results),
        )

    def stream(self, messages: Sequence[Mapping[str, Any]] | str, **params: Any) -> AsyncGenerator[Event, None]:
        """Every event of a run as it happens, a `Step` before each iteration; then one `Usage`, the sum, and `Done`.

        Close the generator if you do not iterate to its end: that stops the model and cancels asynchronous tools.
        Parameters and errors are those of `run`.
        """
        return self._loop(messages, params).events()

    def _loop(self, messages: Sequence[Mapping[str, Any]] | str, params: Mapping[str, Any]) -> AgentLoop:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not is_list(messages):
            raise invalid("messages", "must be a string or a list of messages")
        for name in _LIMITS:
            check_seconds(name, params.get(name))
        request = Request(
            self._model,
            list(messages),
            {name: value for name, value in params.items() if name not in _LIMITS},
            timeout=params.get("timeout"),
            first_token_timeout=params.get("first_token_timeout"),
            stall_timeout=params.get("stall_timeout"),
        )
        return AgentLoop(self._completions, self._tools, request, self._max_iterations)


class _OfClient:
    """A client as completions: it makes the request, with its own limits and options."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        given = {name: value for name in _LIMITS if (value := getattr(request, name)) is not None}
        return self._client.events(request.messages, **{**request.params, **given})


def _by_name(tools: Sequence[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    if not isinstance(tools, Iterable) or isinstance(tools, str | Mapping):
        raise ConfigurationError("tools: must be a list of functions and tools")
    made = [as_tool(one) for one in tools]
    named = {tool.name: tool for tool in made}
    if len(named) != len(made):
        twice = next(tool.name for tool in made if sum(other.name == tool.name for other in made) > 1)
        raise ConfigurationError(f"tools: two have the name {twice}")
    return named


def _checked(max_iterations: int) -> int:
    if type(max_iterations) is not int or max_iterations < 1:
        raise ConfigurationError("max_iterations: must be a whole number of at least 1")
    return max_iterations


__all__ = ["MAX_ITERATIONS", "AgentResult", "AgentRunner", "Client", "Step", "ToolLoop"]
