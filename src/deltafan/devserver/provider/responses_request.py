"""A request to the Responses API, read as the chat completion that asks the same."""

from __future__ import annotations

from typing import Any

from deltafan.devserver.provider.chat import ChatRequest, Message
from deltafan.devserver.provider.params import json_object, model_of, typed, whole, wrong

_TEXT_PARTS = ("input_text", "output_text")
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")


def parse_responses_request(body: bytes) -> ChatRequest:
    """:raises ApiError: 400 that names the parameter and its rule."""
    params = json_object(body)
    instructions = typed(params, "instructions", str, "a string")
    messages: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    return ChatRequest(
        model=model_of(params),
        messages=(*messages, *_messages(params.get("input"))),
        stream=typed(params, "stream", bool, "true or false") or False,
        choices=1,
        token_limit=whole(params, "max_output_tokens", 1),
        stop=(),
        include_usage=True,
        metadata=typed(params, "metadata", dict, "an object") or {},
        params={name: value for name, value in params.items() if name != "input"},
    )


def _messages(given: object) -> list[Message]:
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong("input", "must be a string, or a list with at least one item")
    messages = (_message(item, f"input[{index}]") for index, item in enumerate(given))
    return [message for message in messages if message is not None]


def _message(item: object, where: str) -> Message | None:
    """What the item would be among messages; `None` if it would be nothing, as a reasoning."""
    if not isinstance(item, dict):
        raise wrong(where, "must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        if item.get("role") not in ("user", "assistant", "system", "developer"):
            raise wrong(f"{where}.role", "must be user, assistant, system or developer")
        return {"role": item["role"], "content": _text(item.get("content"), f"{where}.content")}
    if kind in _CALLS:
        return {"role": "assistant", "content": None, "tool_calls": [item]}
    if kind in _RESULTS:
        if not isinstance(item.get("call_id"), str):
            raise wrong(f"{where}.call_id", "must be the id of a call")
        return {"role": "tool", "content": _text(item.get("output"), f"{where}.output")}
    return None


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(where, "must be a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        if part.get("type") in _TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise wrong(f"{where}[{index}].text", "must be a string")
            texts.append(part["text"])
        elif not str(part.get("type")).startswith("input_") and part.get("type") != "refusal":
            raise wrong(f"{where}[{index}].type", "must be that of an input part")
    return "".join(texts)
