"""Functions that a model may call: typed functions made into tools."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from deltafan.errors import ConfigurationError
from deltafan.llm.docstrings import read_docstring
from deltafan.llm.toolschema import Arguments, arguments_of, schema_of, strict_schema

TIMEOUT = 30.0
"""Seconds that a call of a tool may take when the tool does not say."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What chat completions take as a function's name."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. The tool itself can be called just like its function.

    :param parameters: JSON Schema of its arguments, an object's.
    :param func: called with the arguments by name; a coroutine function, or a plain one, which runs in a thread.
    :param timeout: seconds that a call may take. The thread of a plain function cannot be stopped; its result is
        dropped.
    :param strict: the provider is asked to hold the model to the schema, which must be fit for that (see `tool`).
    :raises ConfigurationError: one of them is not what it must be.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    func: Callable[..., Any]
    timeout: float = TIMEOUT
    strict: bool = False
    arguments: type[Arguments] | None = field(default=None, repr=False)
    """Validates the arguments, where the tool was made from a typed function."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"tool {self.name}: give a name of 1 to 64 letters, digits, _ or -")
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type", "object") != "object":
            raise ConfigurationError(f"tool {self.name}: parameters must be the JSON Schema of an object")
        if not callable(self.func):
            raise ConfigurationError(f"tool {self.name}: func must be callable")
        if not 0 < self.timeout < math.inf:
            raise ConfigurationError(f"tool {self.name}: timeout must be a number of seconds above 0")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def schema(self) -> dict[str, Any]:
        """As chat completions take it."""
        parameters = {"type": "object", "properties": {}, **self.parameters}
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": parameters}
        if self.strict:
            function["strict"] = True
        return {"type": "function", "function": function}


@overload
def tool(
    func: Callable[..., Any],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TIMEOUT,
    strict: bool | None = None,
) -> Tool: ...
@overload
def tool(
    func: None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TIMEOUT,
    strict: bool | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TIMEOUT,
    strict: bool | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function: its name, its docstring and its annotated parameters.

    As a decorator, `@tool` or `@tool(timeout=5)`, or called: `tool(func, name="look_up")`. What the docstring says of
    parameters (in the style of Google, NumPy or Sphinx) describes them to the model.

    :param description: what the model is told; by default the docstring.
    :param strict: hold the model to the schema, by OpenAI's rules: every object is closed, every parameter required,
        and null given for one that is left out. True refuses parameters that cannot be said so (an object of any keys,
        `Any`, a tuple); False leaves the schema as it is; by default it is strict where it can be.
    :raises ConfigurationError: no model could call the name, a parameter has no annotation or no name, or no schema
        follows from it.
    """

    def make(func: Callable[..., Any]) -> Tool:
        if isinstance(func, Tool):
            raise ConfigurationError(f"tool {func.name}: is a tool already")
        return _make(func, name, description, timeout, strict)

    return make if func is None else make(func)


def as_tool(given: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is; a function made into one."""
    return given if isinstance(given, Tool) else tool(given)


def _make(
    func: Callable[..., Any], name: str | None, description: str | None, timeout: float, strict: bool | None
) -> Tool:
    name = name or str(getattr(func, "__name__", type(func).__name__))
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"tool {name}: give a name of 1 to 64 letters, digits, _ or -")
    text, told = read_docstring(inspect.getdoc(func) or "")
    model = arguments_of(func, name, told)
    parameters = schema_of(model)
    if strict is not False:
        optional = frozenset(parameters["properties"]) - frozenset(parameters.get("required", ()))
        try:
            parameters = strict_schema(parameters, nullable=optional & model.null_is_default)
            strict = True
        except ValueError as error:
            if strict:
                raise ConfigurationError(f"tool {name}: {error}; or give strict=False") from None
            strict = False
    return Tool(name, text if description is None else description, parameters, func, timeout, strict, model)
