"""What is wrong with a command's argument, in the words of our other errors: the parser's own are pydantic's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from pydantic import ValidationError

_OF_TYPES: Final = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "has too many digits",
    "float_parsing": "must be a number",
    "finite_number": "must be a number, and not infinite",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
}


@contextmanager
def in_our_words() -> Iterator[None]:
    """Rewords what the parser says of a value that does not fit."""
    try:
        yield
    except typer.BadParameter as error:
        if isinstance(error.__cause__, ValidationError):
            found = error.__cause__.errors(include_url=False, include_input=False)[0]
            words = _OF_TYPES.get(found["type"])
            if words is not None:
                error.message = words.format(**{name: _number(limit) for name, limit in found.get("ctx", {}).items()})
            else:
                error.message = error.message.removeprefix("Value error, ").replace("Input should", "must", 1)
        raise


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
