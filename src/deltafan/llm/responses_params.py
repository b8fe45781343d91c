"""Parameters of chat completions as the Responses API takes them. Its own, and those nobody knows, pass as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltafan.errors import CompletionError

_NO_COUNTERPART = {
    "audio": "",
    "frequency_penalty": "",
    "function_call": "use `tool_choice`",
    "functions": "use `tools`",
    "logit_bias": "",
    "prediction": "",
    "presence_penalty": "",
    "seed": "",
    "stop": "",
    "web_search_options": "use the tool `web_search`",
}
"""What chat completions have and the Responses API has not, and what to use instead."""


def responses_params(params: Mapping[str, Any], *, streaming: bool) -> dict[str, Any]:
    """Everything of the body but model, input and `stream`.

    A parameter that is `None` counts as not given.

    :raises CompletionError: `bad_request` that names the parameter: there is nothing of the kind.
    """
    out = {name: value for name, value in params.items() if value is not None and name != "input"}
    for name, instead in _NO_COUNTERPART.items():
        if name in out:
            raise _no_counterpart(name, instead)
    if out.pop("n", 1) != 1:
        raise _no_counterpart("n", "a response has one choice")
    if out.pop("modalities", ["text"]) != ["text"]:
        raise _no_counterpart("modalities", "its answers are text")
    if out.get("background") and not streaming:
        raise CompletionError("bad_request", "params.background: needs a stream; nobody would fetch the answer later")
    _rename_limit(out)
    _nest(out, "reasoning_effort", "reasoning", "effort")
    _nest(out, "verbosity", "text", "verbosity")
    if "response_format" in out:
        out["response_format"] = _text_format(out["response_format"])
        _nest(out, "response_format", "text", "format")
    if out.pop("logprobs", False):
        out["include"] = [*_list(out.get("include") or [], "include"), "message.output_text.logprobs"]
    if "tools" in out:
        tools = _list(out["tools"], "tools")
        out["tools"] = [_tool(tool, f"params.tools[{number}]") for number, tool in enumerate(tools)]
    if "tool_choice" in out:
        out["tool_choice"] = _tool_choice(out["tool_choice"])
    _stream_options(out, streaming=streaming)
    return out


def _rename_limit(out: dict[str, Any]) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name in out:
            out.setdefault("max_output_tokens", out.pop(name))


def _nest(out: dict[str, Any], name: str, inside: str, as_name: str) -> None:
    """Moves a parameter into an object, where one that is there already stays."""
    if name in out:
        given = out.get(inside, {})
        if not isinstance(given, Mapping):
            raise CompletionError("bad_request", f"params.{inside}: must be an object")
        out[inside] = {as_name: out.pop(name), **given}


def _text_format(given: Any) -> Any:
    """`{"type": "json_schema", "json_schema": {"name": …}}` is flat here."""
    if isinstance(given, Mapping) and isinstance(given.get("json_schema"), Mapping):
        return {"type": "json_schema", **given["json_schema"]}
    return given


def _tool(tool: Any, where: str) -> Any:
    """A tool of chat completions, flat; others, which only this API has, as they are."""
    if not isinstance(tool, Mapping):
        raise CompletionError("bad_request", f"{where}: must be an object")
    function, custom = tool.get("function"), tool.get("custom")
    if isinstance(function, Mapping):
        # `strict` is off by default there and on here, and `parameters` must be given here.
        defaults = {"parameters": {"type": "object", "properties": {}}, "strict": False}
        return {"type": "function", **defaults, **{k: v for k, v in function.items() if v is not None}}
    if isinstance(custom, Mapping):
        flat = {"type": "custom", **custom}
        grammar = custom.get("format")
        if isinstance(grammar, Mapping) and isinstance(grammar.get("grammar"), Mapping):
            flat["format"] = {"type": "grammar", **grammar["grammar"]}
        return flat
    return tool


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    inner = choice.get(kind) if isinstance(kind, str) else None
    if not isinstance(inner, Mapping):
        return choice
    if kind == "allowed_tools":
        tools = _list(inner.get("tools"), "tool_choice.allowed_tools.tools")
        return {"type": kind, **inner, "tools": [_named(tool) for tool in tools]}
    return _named(choice)


def _named(choice: Any) -> Any:
    """`{"type": "function", "function": {"name": "f"}}` is `{"type": "function", "name": "f"}` here."""
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    inner = choice.get(kind) if isinstance(kind, str) else None
    return {"type": kind, **inner} if isinstance(inner, Mapping) else choice


def _stream_options(out: dict[str, Any], *, streaming: bool) -> None:
    """Usage always comes here, and nobody may ask for it."""
    options = out.pop("stream_options", None)
    if isinstance(options, Mapping) and streaming:
        options = {name: value for name, value in options.items() if name != "include_usage"}
        if options:
            out["stream_options"] = options


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise CompletionError("bad_request", f"params.{name}: must be a list")
    return list(value)


def _no_counterpart(name: str, instead: str) -> CompletionError:
    why = f"params.{name}: the Responses API has no counterpart"
    return CompletionError("bad_request", f"{why}; {instead}" if instead else why)
