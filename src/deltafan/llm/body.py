"""The request body of a chat completion, in the provider's dialect."""

from __future__ import annotations

from typing import Any

from deltafan.errors import CompletionError
from deltafan.llm.providers import Provider
from deltafan.llm.request import Request

_OURS = frozenset({"model", "messages", "stream", "base_url", "api_key", "extra_headers", "extra_query", "extra_body"})
"""Ours to say, or ways to send a key elsewhere. A job that sets one is refused before it gets here."""


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
    """Everything of the body but model, messages and `stream`."""
    params = {name: value for name, value in request.params.items() if name not in _OURS}
    limits = {"max_tokens", "max_completion_tokens"} & params.keys()
    if len(limits) == 1:
        params[provider.max_tokens] = params.pop(limits.pop())
    if provider.usage_option:
        options = params.get("stream_options")
        params["stream_options"] = {"include_usage": True, **(options if isinstance(options, dict) else {})}
    else:
        params.pop("stream_options", None)
    if request.prefix and provider.prefill == "continue_final_message":
        params |= {"continue_final_message": True, "add_generation_prompt": False}
    return params
