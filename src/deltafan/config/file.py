"""The user's file, `~/.config/deltafan/config.toml`:

default_provider = "groq"           # any setting, by its name as an argument

[providers.openai]
api_key = "sk-…"
base_url = "https://…/v1"

[models."openai/gpt-5"]             # limits in tokens, prices in US dollars per million tokens
tokens_per_minute = 2_000_000
input_price = 1.25
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError as PydanticError

from deltafan.config.dotenv import why
from deltafan.errors import ConfigurationError
from deltafan.llm.settings import ModelSettings, ProviderSettings
from deltafan.settings import Settings

S = TypeVar("S", bound=Settings)

_TABLES: Final = ("providers", "models")


@dataclass(frozen=True, slots=True)
class UserFile:
    """What a file says, before settings are checked. No file says nothing."""

    path: Path | None = None
    settings: Mapping[str, object] = field(default_factory=dict, repr=False)
    """By `option_name`."""
    providers: Mapping[str, ProviderSettings] = field(default_factory=dict)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def called(self, setting: str) -> str:
        """How an error names a setting of the file."""
        return f"{self.path}: {setting}"


def read(path: Path) -> UserFile:
    """The file, if there is one.

    :raises ConfigurationError: it cannot be read, or is no TOML. What is wrong inside is in `problems`: each names the
        file, the table and the key, and never a value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return UserFile()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {why(error)}") from None
    try:
        given = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        # The message may quote a character; not a key, which is longer than that.
        raise ConfigurationError(f"{path}: is not TOML: {error}") from None
    problems: list[str] = []
    settings = {name: _plain(value) for name, value in given.items() if name not in _TABLES}
    return UserFile(
        path,
        settings,
        dict(_tables(path, given, "providers", ProviderSettings, _provider, problems)),
        dict(_tables(path, given, "models", ModelSettings, _same, problems)),
        tuple(problems),
    )


def _tables(
    path: Path,
    given: Mapping[str, Any],
    table: str,
    kind: type[S],
    check: Callable[[S], str | None],
    problems: list[str],
) -> Iterator[tuple[str, S]]:
    tables = given.get(table, {})
    if not isinstance(tables, dict):
        problems.append(f"{path}: {table}: must be tables, [{table}.NAME]")
        return
    for name, values in tables.items():
        where = f"{path}: [{table}.{_quoted(name)}]"
        if not isinstance(values, dict):
            problems.append(f"{where}: must be a table")
            continue
        try:
            settings = kind.model_validate(values)
        except PydanticError as error:
            problems += [f"{where} {told}" for told in _told(error, kind)]
            continue
        problem = check(settings)
        if problem is None:
            yield name, settings
        else:
            problems.append(f"{where} {problem}")


def _told(error: PydanticError, kind: type[Settings]) -> Iterator[str]:
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(map(str, found["loc"]))
        if found["type"] == "extra_forbidden":
            yield f"{key}: is not a setting; there are {', '.join(kind.model_fields)}"
        else:
            yield f"{key}: {found['msg'].removeprefix('Value error, ').replace('Input should', 'must', 1)}"


def _provider(provider: ProviderSettings) -> str | None:
    url = provider.base_url
    wrong = url is not None and not url.startswith(("http://", "https://"))
    return "base_url: must begin with http:// or https://" if wrong else None


def _same(model: ModelSettings) -> None:
    return None


def _plain(value: object) -> object:
    """A TOML value as settings take it."""
    if isinstance(value, Decimal):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else f'"{name}"'
