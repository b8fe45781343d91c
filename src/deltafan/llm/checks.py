"""Checks of what a program passes: what is wrong is told at once, and by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltafan.errors import FieldError, ValidationError


def invalid(field: str, rule: str) -> ValidationError:
    return ValidationError([FieldError(field, rule)])


def is_number(value: Any) -> bool:
    """A finite one. True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """A whole number, 1 or more."""
    return type(value) is int and value >= 1


def is_list(value: Any) -> bool:
    """A sequence, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def check_seconds(field: str, value: Any) -> None:
    """:raises ValidationError: it is no number above 0, nor `None`."""
    if value is not None and not (is_number(value) and value > 0):
        raise invalid(field, "must be a number of seconds above 0, or None")


def check_objects(field: str, value: Any) -> None:
    """:raises ValidationError: it is no list of objects."""
    if not is_list(value):
        raise invalid(field, "must be a list of objects")
    for place, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise invalid(f"{field}[{place}]", "must be an object")
