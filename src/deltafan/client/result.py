"""What a completion amounts to, as a value."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from deltafan.coalesce import coalesce
from deltafan.errors import CompletionError
from deltafan.events import Delta, Event, FinishReason, Meta, ToolResult, Usage
from deltafan.llm.seam import Ended, Started
from deltafan.transcript import ToolCall, Transcript


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several answers to the same request (`n` above 1)."""

    index: int
    text: str
    reasoning: str
    refusal: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A completion, or what there is of a failed one."""

    text: str
    """Of the last turn, where the model was asked again with what tools gave; so are reasoning and refusal."""
    reasoning: str
    refusal: str
    tool_calls: tuple[ToolCall, ...]
    """Those of the last turn that nobody has answered. The arguments are the model's JSON text, not checked."""
    tool_results: tuple[ToolResult, ...]
    """Of the tools that the client ran, in all turns."""
    finish_reason: FinishReason
    usage: Usage
    """Tokens, and `cost_usd`. What is unknown is `None`."""
    model: str
    """As the provider names it."""
    provider: str
    response_time: float
    """Seconds from the request to the end of the answer."""
    time_to_first_token: float | None
    """Seconds to the first text, reasoning, refusal or tool call."""
    cached: bool
    """It came from a cache; nothing was asked, and nothing spent."""
    request_id: str | None
    """The provider's id of the request, for its support."""
    error: CompletionError | None
    """Why it failed; the rest is then what had come until then."""
    choices: tuple[Choice, ...]
    """All answers, by index; the first is the one that the fields above hold."""
    created: int
    """When the answer began: Unix time in seconds."""
    response_id: str | None
    """The provider's id of the answer, for `previous_response_id` of the Responses API."""


class Collector:
    """Feed it a completion's events as they come; then ask for the result.

    :param model: what was asked for, until it is known what answers.
    """

    def __init__(self, model: str, provider: str) -> None:
        self._began = time.monotonic()
        self._first_token: float | None = None
        self._started = Started(provider=provider, model=model, created=int(time.time()))
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        if isinstance(event, Started):
            self._started = event
        if self._first_token is None and isinstance(event, Delta):
            self._first_token = time.monotonic() - self._began
        self._events.append(event)

    def result(self, error: CompletionError | None = None) -> Result:
        whole, turn = Transcript(), _Turn()
        for event in coalesce(self._events):
            if turn.ends_before(event):
                turn = _Turn()
            turn.add(event)
            if not isinstance(event, Delta):
                whole.add(event)
        finish: FinishReason = whole.done.finish_reason if whole.done else "error"
        made = turn.choices(finish, whole.done.finish_reasons if isinstance(whole.done, Ended) else {})
        started = self._started
        return Result(
            text=made[0].text,
            reasoning=made[0].reasoning,
            refusal=made[0].refusal,
            tool_calls=made[0].tool_calls,
            tool_results=tuple(whole.tool_results),
            finish_reason=finish,
            usage=whole.usage or (error.usage if error is not None else None) or Usage(),
            model=started.model,
            provider=started.provider,
            response_time=time.monotonic() - self._began,
            time_to_first_token=self._first_token,
            cached=started.cached,
            request_id=started.request_id,
            error=error,
            choices=made,
            created=started.created,
            response_id=started.response_id,
        )


class _Turn:
    """What the model says when it is asked once. The results of its calls end it."""

    def __init__(self) -> None:
        self._said: dict[int, Transcript] = {0: Transcript()}
        self._answered: set[str] = set()

    def ends_before(self, event: Event) -> bool:
        return bool(self._answered) and isinstance(event, Delta | Started)

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._said.setdefault(event.choice, Transcript()).add(replace(event, choice=0))
        elif isinstance(event, ToolResult):
            self._answered.add(event.call_id)
        elif isinstance(event, Meta):
            for choice in self._said.values():
                choice.add(event)
            if not event.continued:
                self._answered.clear()

    def choices(self, finish: FinishReason, reasons: Mapping[int, FinishReason]) -> tuple[Choice, ...]:
        """:param finish: of the choices that have no reason of their own."""
        return tuple(
            self._choice(index, self._said.get(index) or Transcript(), reasons.get(index, finish))
            for index in sorted(self._said.keys() | reasons.keys())
        )

    def _choice(self, index: int, said: Transcript, finish: FinishReason) -> Choice:
        # The tools that ran are those of the first choice.
        calls = tuple(call for call in said.tool_calls if index != 0 or call.id not in self._answered)
        return Choice(index, said.text, said.reasoning, said.refusal, calls, finish)


def as_response(result: Result, params: Mapping[str, Any], identifier: str | None) -> dict[str, Any]:
    """The result as plain data, fit for JSON: what `get_response` gives."""
    error = result.error
    usage = result.usage
    return {
        "params": dict(params),
        "output": result.text if error is None else result.text or None,
        "usage": {f.name: getattr(usage, f.name) for f in fields(Usage) if f.name not in ("id", "first", "job")},
        "status": 200 if error is None else error.status_code,
        "error": "OK" if error is None else error.message,
        "error_code": None if error is None else error.code,
        "identifier": identifier,
        "reasoning": result.reasoning,
        "refusal": result.refusal,
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in result.tool_calls],
        "finish_reason": result.finish_reason,
        "model": result.model,
        "provider": result.provider,
        "response_time": result.response_time,
        "time_to_first_token": result.time_to_first_token,
        "cached": result.cached,
        "request_id": result.request_id,
    }
