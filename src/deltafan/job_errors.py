"""What is wrong with a job spec, in words for people: pydantic's findings, with the field as a user wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError as PydanticError

from deltafan.errors import FieldError
from deltafan.settings import QUEUE_NAME

MOST: Final = 20
"""Findings that one answer tells."""
SINK_NAME: Final = r"^[a-z][a-z0-9_-]{0,31}$"
MODEL_NAME: Final = r"^[^\s\x00-\x1f]+$"
BELOW: Final = "below"
"""The type of an error that belongs to a field of the object in which it was found; its context names that field."""

_PATTERNS = {
    MODEL_NAME: "must not hold spaces or control characters",
    QUEUE_NAME: "may hold lower case letters, digits, - and _, at most 64, the first a letter or digit",
    SINK_NAME: "may hold lower case letters, digits, - and _, at most 32, the first a letter",
}
_KINDS = {
    "extra_forbidden": "is not a field of a job",
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be text: it holds half of a surrogate pair, which UTF-8 cannot carry",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
}
_PART_TYPES = ("text", "image_url", "input_audio", "file", "refusal")
_CONTENT_KINDS = ("string", "parts")


def field_errors(error: PydanticError) -> list[FieldError]:
    """The findings, each once, in the order of the fields; the first of very many."""
    found: dict[FieldError, None] = {}
    for item in error.errors(include_url=False, include_input=False):
        kind, loc, context = item["type"], item["loc"], item.get("ctx", {})
        message = _message(kind, item["msg"], context)
        if loc and loc[-1] == "[key]":
            loc, message = loc[:-2], "must have strings as names"
        path = _path(loc)
        if kind == BELOW:
            path = f"{path}.{context[BELOW]}" if path else context[BELOW]
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path += ".type"
        found[FieldError(path, message)] = None
        if len(found) == MOST:
            break
    return list(found)


def _message(kind: str, text: str, context: Mapping[str, Any]) -> str:
    if kind in _KINDS:
        return _KINDS[kind]
    match kind:
        case "string_pattern_mismatch":
            return _PATTERNS[context["pattern"]]
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "too_long":
            return f"must have at most {context['max_length']} entries"
        case "greater_than":
            return f"must be more than {_number(context['gt'])}"
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}"
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}"
        case "union_tag_invalid" | "union_tag_not_found":
            return f"must be {', '.join(_PART_TYPES[:-1])} or {_PART_TYPES[-1]}"
    if kind.startswith("datetime"):
        return "must be a time with a UTC offset, such as 2030-01-31T09:00:00Z"
    return text.removeprefix("Value error, ").replace("Input should be", "must be", 1)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _path(loc: tuple[int | str, ...]) -> str:
    """The way to a field. Pydantic names the branches of a union in it, of which a user knows nothing."""
    path = ""
    for place, part in enumerate(loc):
        before = loc[place - 1] if place else None
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (
            (before == "content" and part in _CONTENT_KINDS) or (isinstance(before, int) and part in _PART_TYPES)
        ):
            path += f".{part}" if path else part
    return path
