"""What a docstring says of a function and of its parameters, in the styles of Google, NumPy and Sphinx."""

from __future__ import annotations

import re
from collections.abc import Iterator

_GOOGLE = re.compile(r"(?:Args|Arguments|Parameters|Params)\s*:\s*")
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY = re.compile(r"(?:Other )?Parameters\s*")
_NUMPY_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?::.*)?")
_RULE = re.compile(r"-{3,}\s*")
_SPHINX_ITEM = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)")
_SPHINX_TYPE = re.compile(r":type\s+\w+\s*:.*")


def read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """The text without what it says of parameters, and that by the parameters' names, each on one line."""
    rest: list[str] = []
    told: dict[str, list[str]] = {}
    lines = doc.splitlines()
    place = 0
    while place < len(lines):
        line = lines[place]
        sphinx = _SPHINX_ITEM.fullmatch(line.strip())
        if _GOOGLE.fullmatch(line.strip()):
            end = _end_of_block(lines, place + 1, _indent(line) + 1)
            _items(lines[place + 1 : end], _GOOGLE_ITEM, told)
        elif _NUMPY.fullmatch(line.strip()) and _RULE.fullmatch(_at(lines, place + 1).strip()):
            end = _end_of_numpy(lines, place + 2, _indent(line))
            _items(lines[place + 2 : end], _NUMPY_ITEM, told)
        elif sphinx:
            end = _end_of_block(lines, place + 1, _indent(line) + 1)
            told[sphinx[1]] = [sphinx[2], *lines[place + 1 : end]]
        else:
            end = place + 1
            if not _SPHINX_TYPE.fullmatch(line.strip()):
                rest.append(line)
        place = end
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()
    return text, {name: joined for name, said in told.items() if (joined := " ".join(" ".join(said).split()))}


def _items(block: list[str], item: re.Pattern[str], told: dict[str, list[str]]) -> None:
    """The parameters of a section: each begins at the section's own indentation, what is deeper belongs to it."""
    margin = min((_indent(line) for line in block if line.strip()), default=0)
    current: list[str] | None = None
    for line in block:
        begins = item.fullmatch(line.strip()) if line.strip() and _indent(line) == margin else None
        if begins:
            current = told.setdefault(begins[1], [])
            current.extend(begins.groups()[1:])
        elif current is not None:
            current.append(line)


def _end_of_block(lines: list[str], start: int, indent: int) -> int:
    """Behind the last line that is indented at least so far; blank lines between such lines belong to them."""
    end = start
    for place, line in _from(lines, start):
        if line.strip():
            if _indent(line) < indent:
                break
            end = place + 1
    return end


def _end_of_numpy(lines: list[str], start: int, indent: int) -> int:
    """The next section's title, or the end."""
    for place, line in _from(lines, start):
        if line.strip() and _indent(line) <= indent and _RULE.fullmatch(_at(lines, place + 1).strip()):
            return place
    return len(lines)


def _from(lines: list[str], start: int) -> Iterator[tuple[int, str]]:
    return ((place, lines[place]) for place in range(start, len(lines)))


def _at(lines: list[str], place: int) -> str:
    return lines[place] if place < len(lines) else ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
