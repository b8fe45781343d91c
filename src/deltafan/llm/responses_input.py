"""Messages of chat completions as `input` of the Responses API: one item for a message, one for each tool call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltafan.errors import CompletionError
from deltafan.llm.request import Request

_OWN_PARTS = frozenset({"input_text", "input_image", "input_file", "input_audio", "output_text", "refusal"})
"""Parts that the API takes as they are."""


def input_of(request: Request) -> Any:
    """`params["input"]` as it is given, and after it the messages as items; `None` where there is neither.

    A message without a role but with a type is an item already, and stays as it is.

    :raises CompletionError: `bad_request` that names the field of a message for which items have nothing.
    """
    given = request.params.get("input")
    if not request.messages:
        return given
    items = items_of(request.messages)
    if given is None:
        return items
    if isinstance(given, str):
        return [{"role": "user", "content": given}, *items]
    if isinstance(given, (list, tuple)):
        return [*given, *items]
    raise _wrong("params.input", "must be a string or a list of items")


def items_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """:raises CompletionError: `bad_request`."""
    items: list[dict[str, Any]] = []
    custom: set[str] = set()  # calls whose results are of another type
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role")
        if role is None and isinstance(message.get("type"), str):
            items.append(dict(message))
        elif role == "assistant":
            items += _assistant(message, where, custom)
        elif role == "tool":
            items.append(_tool_result(message, where, custom))
        elif role in ("system", "developer", "user"):
            _refuse(message, where, ("name",))
            items.append({"role": role, "content": _content(message.get("content"), f"{where}.content")})
        else:
            raise _wrong(f"{where}.role", f"the Responses API has no counterpart of {role!r}")
    return items


def _assistant(message: Mapping[str, Any], where: str, custom: set[str]) -> list[dict[str, Any]]:
    _refuse(message, where, ("name", "audio", "function_call"))
    items: list[dict[str, Any]] = []
    parts = _output_parts(message.get("content"), f"{where}.content")
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    if parts:
        # Text alone as a string: not every server takes parts of an answer that it has no id of.
        texts = [part.get("text") for part in parts if part["type"] == "output_text"]
        plain = len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
        item: dict[str, Any] = {"role": "assistant", "content": "".join(map(str, texts)) if plain else parts}
        if message.get("phase"):
            item["phase"] = message["phase"]
        items.append(item)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, (list, tuple)):
        raise _wrong(f"{where}.tool_calls", "must be a list")
    for number, call in enumerate(calls):
        made = _call(call, f"{where}.tool_calls[{number}]")
        if made["type"] == "custom_tool_call":
            custom.add(made["call_id"])
        items.append(made)
    return items


def _output_parts(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "output_text", "text": content}]
    out = []
    for number, part in enumerate(_parts(content, where)):
        match part.get("type"):
            case "text":
                out.append({"type": "output_text", "text": part.get("text")})
            case kind if kind in _OWN_PARTS:
                out.append(dict(part))
            case kind:
                raise _wrong(f"{where}[{number}].type", f"the Responses API has no counterpart of {kind!r}")
    return out


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("id"), str):
        raise _wrong(where, "must be an object with an id")
    function, custom = call.get("function"), call.get("custom")
    if isinstance(function, Mapping):
        head = {"type": "function_call", "call_id": call["id"], "name": function.get("name")}
        return {**head, "arguments": function.get("arguments") or "{}"}
    if isinstance(custom, Mapping):
        head = {"type": "custom_tool_call", "call_id": call["id"], "name": custom.get("name")}
        return {**head, "input": custom.get("input") or ""}
    raise _wrong(where, "must have a function")


def _tool_result(message: Mapping[str, Any], where: str, custom: set[str]) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str):
        raise _wrong(f"{where}.tool_call_id", "must be the id of a tool call")
    kind = "custom_tool_call_output" if call_id in custom else "function_call_output"
    return {"type": kind, "call_id": call_id, "output": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return [_input_part(part, f"{where}[{number}]") for number, part in enumerate(_parts(content, where))]


def _input_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "input_text", "text": part.get("text")}
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else image
        if not isinstance(image, Mapping):
            raise _wrong(f"{where}.image_url", "must be an object with a url")
        return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail") or "auto"}
    if kind == "file":
        file = part.get("file")
        if not isinstance(file, Mapping):
            raise _wrong(f"{where}.file", "must be an object")
        return {"type": "input_file", **file}
    if kind in _OWN_PARTS:
        return dict(part)
    raise _wrong(f"{where}.type", f"the Responses API has no counterpart of {kind!r}")


def _parts(content: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise _wrong(where, "must be a string, a list of parts or null")
    return list(content)


def _refuse(message: Mapping[str, Any], where: str, names: Sequence[str]) -> None:
    for name in names:
        if message.get(name) is not None:
            raise _wrong(f"{where}.{name}", "the Responses API has no counterpart")


def _wrong(field: str, rule: str) -> CompletionError:
    return CompletionError("bad_request", f"{field}: {rule}")
