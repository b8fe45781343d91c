"""What one request changes of the script: `X-Provider-*` headers over the request's `metadata` over the script.

A header's value is percent-encoded UTF-8, so that it can hold any text: a `%` of its own is written `%25`. A metadata
value is a plain string. The options are the same; a recorded stream cannot be named, because it would be a path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from deltafan.devserver.provider.faults import parse_faults
from deltafan.devserver.provider.script import Script, parse_tool_calls
from deltafan.devserver.provider.source import Echo, Text, Written
from deltafan.errors import FieldError, ValidationError

HEADER_PREFIX = "X-Provider-"

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SWITCH = {"on": True, "true": True, "1": True, "yes": True, "off": False, "false": False, "0": False, "no": False}


def _number(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", value):
        raise ValueError("must be a number, 0 or more")
    return float(value)


def _whole(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("must be a whole number")
    return int(value)


def _switch(value: str) -> bool:
    if value.lower() not in _SWITCH:
        raise ValueError("must be on or off")
    return _SWITCH[value.lower()]


def _word(value: str) -> str | None:
    return value or None


_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "text": ("source", Text),
    "echo": ("source", _switch),
    "rate": ("rate", _number),
    "chunk_size": ("chunk_size", _whole),
    "first_token_delay": ("first_token_delay", _number),
    "fault": ("faults", parse_faults),
    "tool_calls": ("tool_calls", parse_tool_calls),
    "reasoning": ("reasoning", str),
    "refusal": ("refusal", str),
    "finish_reason": ("finish_reason", _word),
    "usage": ("usage", _switch),
    "key": ("key", str),
}
"""Option -> the script's field that it sets, and how its text is read. `key` is no field: it tells prompts apart."""

_OPTION_OF_FIELD = {"faults": "fault"}


def header_options(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The options in a request's headers, decoded; the values of a repeated `X-Provider-Fault` are joined.

    :raises ValidationError: an unknown or repeated `X-Provider-*` header, or one that is not percent-encoded UTF-8.
    """
    options: dict[str, str] = {}
    for name, value in headers:
        if not name.lower().startswith(HEADER_PREFIX.lower()):
            continue
        option = name[len(HEADER_PREFIX) :].lower().replace("-", "_")
        if option not in _OPTIONS:
            raise _wrong(name, f"is not known; one of {', '.join(map(header_name, _OPTIONS))}")
        decoded = _decoded(name, value)
        if option in options and option != "fault":
            raise _wrong(header_name(option), "is given twice")
        options[option] = f"{options[option]},{decoded}" if option in options else decoded
    return options


def metadata_options(metadata: Mapping[str, object]) -> dict[str, str]:
    """The options in a request's `metadata`; its other keys are the caller's own.

    :raises ValidationError: an option is not a string.
    """
    options: dict[str, str] = {}
    for name, value in metadata.items():
        option = name.lower().replace("-", "_")
        if option not in _OPTIONS:
            continue
        if not isinstance(value, str):
            raise _wrong(metadata_name(name), "must be a string")
        options[option] = value
    return options


def override(script: Script, options: Mapping[str, str], label: Callable[[str], str]) -> Script:
    """The script with the options set. `label` turns an option into the name that the caller knows it by.

    :raises ValidationError: names the option and its rule.
    """
    if "text" in options and "echo" in options:
        raise _wrong(label("echo"), f"cannot be combined with {label('text')}")
    changes: dict[str, Any] = {}
    for option, text in options.items():
        field, read = _OPTIONS[option]
        try:
            value = read(text)
        except ValueError as error:
            raise _wrong(label(option), str(error)) from None
        except ValidationError as error:
            raise ValidationError([FieldError(label(option), wrong.message) for wrong in error.fields]) from None
        if option == "echo":
            value = Echo() if value else Written() if isinstance(script.source, Echo) else script.source
        if option != "key":
            changes[field] = value
    try:
        return replace(script, **changes)
    except ValidationError as error:
        raise ValidationError(
            [FieldError(label(_OPTION_OF_FIELD.get(wrong.field, wrong.field)), wrong.message) for wrong in error.fields]
        ) from None


def header_name(option: str) -> str:
    return HEADER_PREFIX + "-".join(part.capitalize() for part in option.split("_"))


def metadata_name(option: str) -> str:
    return f"metadata.{option}"


def _decoded(name: str, value: str) -> str:
    if _BAD_PERCENT.search(value):
        raise _wrong(name, "must be percent-encoded UTF-8; a % of its own is written %25")
    try:
        decoded = unquote(value, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise _wrong(name, "must be percent-encoded UTF-8") from None
    return decoded


def _wrong(field: str, rule: str) -> ValidationError:
    return ValidationError([FieldError(field, rule)])
