"""The request body of a completion, in the provider's dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltafan.errors import CompletionError
from deltafan.llm.providers import Provider
from deltafan.llm.request import Request
from deltafan.llm.responses_input import input_of
from deltafan.llm.responses_params import responses_params

_OURS = frozenset({"model", "messages", "stream", "base_url", "api_key", "extra_headers", "extra_query", "extra_body"})
"""Ours to say, or ways to send a key elsewhere. A job that sets one is refused before it gets here."""


def body_of(request: Request, provider: Provider, model: str) -> dict[str, Any]:
    """The whole body.

    :raises CompletionError: `bad_request`: the provider, or the interface, has nothing for what the request asks.
    """
    body: dict[str, Any] = {"model": model, "stream": request.streaming}
    if request.api == "responses":
        if request.prefix:
            raise CompletionError("bad_request", "prefix: the Responses API cannot go on from given text")
        body |= responses_params(_theirs(request), streaming=request.streaming)
        given = input_of(request)
        return body if given is None else body | {"input": given}
    return body | params_of(request, provider) | {"messages": messages_of(request, provider)}


def prompt_of(request: Request, provider: Provider) -> Sequence[Mapping[str, Any]]:
    """What the model reads, as messages or as items, which is what an estimate of its tokens counts."""
    if request.api == "chat":
        return messages_of(request, provider)
    given = input_of(request)
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return given if isinstance(given, (list, tuple)) else []


def messages_of(request: Request, provider: Provider) -> list[dict[str, Any]]:
    """The messages, with the text to go on from as the provider wants it.

    :raises CompletionError: `bad_request`, if there is such text and the provider cannot go on from it.
    """
    messages = [dict(message) for message in request.messages]
    if not request.prefix:
        return messages
    if provider.prefill == "none":
        raise CompletionError("bad_request", f"prefix: {provider.name} cannot go on from given text")
    last: dict[str, Any] = {"role": "assistant", "content": request.prefix}
    if provider.prefill == "prefix":
        last["prefix"] = True
    return [*messages, last]


def params_of(request: Request, provider: Provider) -> dict[str, Any]:
    """Everything of a chat completion's body but model, messages and `stream`."""
    params = _theirs(request)
    limits = {"max_tokens", "max_completion_tokens"} & params.keys()
    if len(limits) == 1:
        params[provider.max_tokens] = params.pop(limits.pop())
    if provider.usage_option and request.streaming:
        options = params.get("stream_options")
        params["stream_options"] = {"include_usage": True, **(options if isinstance(options, dict) else {})}
    else:
        params.pop("stream_options", None)
    if not provider.strict_tools and isinstance(params.get("tools"), list | tuple):
        params["tools"] = [_without_strict(tool) for tool in params["tools"]]
    if request.prefix and provider.prefill == "continue_final_message":
        params |= {"continue_final_message": True, "add_generation_prompt": False}
    return params


def _without_strict(tool: Any) -> Any:
    """A provider that does not know the word refuses it, or a mix of tools with and without it."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or "strict" not in function:
        return tool
    return {**tool, "function": {name: value for name, value in function.items() if name != "strict"}}


def _theirs(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.params.items() if name not in _OURS}
