"""`.env` files: `NAME=value` lines, as docker compose reads them, without substitutions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from deltafan.errors import ConfigurationError

_ASSIGNMENT: Final = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>.*)", re.ASCII | re.DOTALL)
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
_CLOSING: Final = {"'": re.compile(r"'"), '"': re.compile(r'(?<!\\)(?:\\\\)*(")')}
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


def nearest(folder: Path) -> Path | None:
    """The `.env` file in this folder, or in the first above it that has one."""
    for place in (folder, *folder.parents):
        path = place / ".env"
        try:
            if path.is_file():
                return path
        except OSError:  # a folder that may not be looked into
            continue
    return None


def read(path: Path) -> dict[str, str]:
    """The variables of a file.

    :raises ConfigurationError: the file cannot be read, or a line is no assignment; names the line, and nothing in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {why(error)}") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> dict[str, str]:
    """The variables in the text of a file. A quoted value may have several lines; in double quotes, `\\n` is a line
    end. What follows ` #` in a value without quotes is a comment."""
    found: dict[str, str] = {}
    lines = iter(enumerate(text.replace("\r\n", "\n").split("\n"), 1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            raise ConfigurationError(f"{source}, line {number}: must be NAME=value, a comment, or empty")
        value = match["value"]
        if value[:1] not in _CLOSING:
            found[match["name"]] = _COMMENT.sub("", value).strip()
            continue
        quote, value = value[0], value[1:]
        while (closing := _CLOSING[quote].search(value)) is None:
            following = next(lines, None)
            if following is None:
                raise ConfigurationError(f"{source}, line {number}: the quote is not closed")
            value += "\n" + following[1]
        if _COMMENT.sub("", value[closing.end() :]).strip():
            raise ConfigurationError(f"{source}, line {number}: there is more after the closing quote")
        value = value[: closing.end() - 1]
        found[match["name"]] = _unescaped(value) if quote == '"' else value
    return found


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), value, flags=re.DOTALL)


def why(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read, without its content."""
    return (error.strerror or "unknown") if isinstance(error, OSError) else "it is not UTF-8"
