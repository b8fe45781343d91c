"""Settings as flags: made from the settings objects, so that each setting is a flag and none is described twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from deltafan.settings import Settings
from deltafan.wiring import TABLES, Configuration, as_variables, load, option_name, variable

_KINDS = {float: "NUMBER", int: "NUMBER", str: "TEXT"}


class Given:
    """The settings that were given as flags, as they were written."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def load(self, **changes: str) -> Configuration:
        """All settings: flags, else the environment, else defaults.

        :raises ConfigurationError: names the flags and the variables that are wrong.
        """
        return load(overrides={**self.values, **changes}, called=flag)

    def as_variables(self) -> dict[str, str]:
        """For the environment of a process of ours."""
        return as_variables(self.values)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def takes_settings(*components: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of these settings. The command gets them as its first argument, `Given`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {
            option_name(name): (component, name, info)
            for component in components
            for name, info in component.model_fields.items()
            if name not in TABLES
        }

        def called(**arguments: Any) -> None:
            values = {name: value for name in fields if (value := arguments.pop(name)) is not None}
            command(Given(values), **arguments)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        made = [_parameter(name, *field) for name, field in fields.items()]
        called.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
        called.__name__ = command.__name__
        called.__doc__ = command.__doc__
        return called

    return decorate


def _parameter(name: str, component: type[Settings], field: str, info: FieldInfo) -> inspect.Parameter:
    option = typer.Option(
        flag(name),
        help=f"{info.description} {_default(info)}[{variable(field)}]",
        metavar=_KINDS.get(info.annotation, "TEXT") if isinstance(info.annotation, type) else "LIST",
        show_default=False,
        rich_help_panel=_panel(component),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _default(info: FieldInfo) -> str:
    value = info.default
    if not info.repr or isinstance(value, SecretStr) or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"(default {value:.10g}) " if isinstance(value, float) else f"(default {value}) "


def _panel(component: type[Settings]) -> str:
    return f"{component.__name__.removesuffix('Settings')} settings"
