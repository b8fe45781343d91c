"""The places that settings come from, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from deltafan.config import dotenv, file, process
from deltafan.config.names import option_name, variable
from deltafan.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where settings come from, besides overrides."""

    env: Mapping[str, str] = field(repr=False)
    """Variables: of the environment, and those of the `.env` file that it does not have."""
    dotenv: Path | None = None
    from_dotenv: frozenset[str] = frozenset()
    configured: process.Configured = field(default_factory=process.Configured)
    file: file.UserFile = field(default_factory=file.UserFile)

    def find(self, setting: str) -> tuple[str, object]:
        """How an error names the place where the value of a field was found, and that; `None` if there is none."""
        name, named = option_name(setting), variable(setting)
        if name in self.configured.settings:
            return f"configure: {name}", self.configured.settings[name]
        if self.env.get(named, "").strip():
            return self.called(named), self.env[named]
        if name in self.file.settings:
            return self.file.called(name), self.file.settings[name]
        return named, None

    def called(self, variable: str) -> str:
        """How an error names a variable."""
        return f"{self.dotenv}: {variable}" if variable in self.from_dotenv else variable


def gather(env: Mapping[str, str], problems: list[str]) -> Sources:
    """The sources of this process, whose environment this is. The files are read anew each time."""
    path = _told(_nearest_dotenv, problems)
    variables = _told(lambda: dotenv.read(path) if path is not None else None, problems) or {}
    return Sources(
        env={**variables, **env},
        dotenv=path,
        from_dotenv=frozenset(variables.keys() - env.keys()),
        configured=process.configured(),
        file=_told(lambda: _user_file(env), problems) or file.UserFile(),
    )


def _nearest_dotenv() -> Path | None:
    try:
        return dotenv.nearest(Path.cwd())
    except OSError:  # the working directory is gone
        return None


def _user_file(env: Mapping[str, str]) -> file.UserFile:
    """By the XDG base directory specification, which has a relative directory count as none."""
    folder = Path(env.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():
        folder = Path(env.get("HOME", "")) / ".config"
    return file.read(folder / "deltafan" / "config.toml") if folder.is_absolute() else file.UserFile()


def _told(read: Callable[[], T], problems: list[str]) -> T | None:
    """What this reads. An error is one more problem, so that all of them are told at once."""
    try:
        return read()
    except ConfigurationError as error:
        problems.append(str(error))
        return None
