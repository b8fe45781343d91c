"""A ring that refuses prompts that are longer than the model takes, before they are sent and paid for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from deltafan.errors import CompletionError
from deltafan.events import Event
from deltafan.llm.profiles import ModelProfile, profile_of
from deltafan.llm.providers import split_model
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions
from deltafan.llm.settings import LLMSettings
from deltafan.llm.tokens import TokenCount, count_of, rough_count

OPTION: Final = "check_context"
"""In `Request.options`: `False` sends the request whatever its length."""

_DOUBT: Final = 1.25
"""An estimate refuses only what is over the limit by more than it may be wrong. The rest is for the provider to say."""
_MOST_MODELS: Final = 1000
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class _Limits:
    provider: str
    model: str
    context_window: int | None
    max_input: int | None

    def most(self, asked: int) -> int | None:
        """Tokens that a prompt may have, beside the completion that is asked for. `None` is unknown."""
        window = None if self.context_window is None else self.context_window - asked
        known = [limit for limit in (window, self.max_input) if limit is not None]
        return min(known) if known else None


class ContextCheck:
    """Refuses a request whose prompt, together with the output it asks for, is over the limits of the model's profile;
    and tells the rings inside how many tokens the prompt has (`Request.prompt_tokens`).

    Tokens are counted only where the size in bytes leaves a doubt, in a thread. `Request.prompt_tokens` is an estimate
    otherwise, and stays as it is where somebody has set it. A model whose limits nobody knows is not checked.
    """

    def __init__(self, inner: Completions, settings: LLMSettings | None = None) -> None:
        self._inner = inner
        self._settings = settings or LLMSettings()
        self._limits: dict[str, _Limits] = {}

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`.

        Fails with `context_length` before anything is sent; the message has the tokens, the limit and the output asked.
        """
        limits = self._limits.get(request.model)
        if limits is None:
            return self._first(request)
        messages, tools = _prompt(request)
        estimate, bound = rough_count(messages, tools)
        most = limits.most(_asked(request))
        if most is None or bound <= most or not self._wanted(request):
            return self._inner.stream(_counted(request, estimate))
        return self._checked(request, limits, most)

    def _wanted(self, request: Request) -> bool:
        return self._settings.check_context and request.options.get(OPTION) is not False

    async def _first(self, request: Request) -> AsyncGenerator[Event, None]:
        """The model is new here: its profile may have to be loaded, which takes too long for the event loop."""
        limits = await asyncio.to_thread(self._find, request.model)
        if len(self._limits) >= _MOST_MODELS:  # names come with jobs, and are whatever their senders like
            self._limits.clear()
        self._limits[request.model] = limits
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                yield event

    def _find(self, model: str) -> _Limits:
        provider, name = split_model(model, self._settings)
        profile: ModelProfile = profile_of(provider, name, self._settings.models)
        return _Limits(provider, name, profile.context_window, profile.max_input)

    async def _checked(self, request: Request, limits: _Limits, most: int) -> AsyncGenerator[Event, None]:
        messages, tools = _prompt(request)
        tokens = await asyncio.to_thread(count_of, messages, limits.provider, limits.model, tools=tools)
        if tokens > most * (1 if tokens.exact else _DOUBT):
            raise _refusal(request, limits, tokens, most)
        async with aclosing(self._inner.stream(_counted(request, int(tokens)))) as events:
            async for event in events:
                yield event


def _counted(request: Request, tokens: int) -> Request:
    return request if request.prompt_tokens is not None else replace(request, prompt_tokens=tokens)


def _prompt(request: Request) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """The messages and the tools, wherever the request has them."""
    messages = [*request.messages]
    for field, role in (("instructions", "system"), ("input", "user")):  # of the Responses API
        given = request.params.get(field)
        if isinstance(given, str):
            messages.append({"role": role, "content": given})
        elif isinstance(given, (list, tuple)):
            messages += [item for item in given if isinstance(item, Mapping)]
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
    tools = request.params.get("tools")
    return messages, [t for t in tools if isinstance(t, Mapping)] if isinstance(tools, (list, tuple)) else ()


def _asked(request: Request) -> int:
    """The output that is asked for, in tokens; 0 where that is left to the model."""
    asked = [value for name in _OUTPUT_LIMITS if type(value := request.params.get(name)) is int and value > 0]
    return max(asked, default=0)


def _refusal(request: Request, limits: _Limits, tokens: TokenCount, most: int) -> CompletionError:
    asked = _asked(request)
    have = f"the prompt has {int(tokens):,} tokens" if tokens.exact else f"the prompt has about {int(tokens):,} tokens"
    if limits.context_window is not None and most == limits.context_window - asked:
        limit = f"the context window of {limits.model} is {limits.context_window:,}"
        limit += f", and {asked:,} are asked for as output" if asked else ""
    else:
        limit = f"{limits.model} takes {limits.max_input:,}"
    return CompletionError("context_length", f"{have}; {limit}", provider=limits.provider, model=limits.model)
