"""Printing: data to standard output, everything else to standard error, errors in a line or two."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console

from deltafan.errors import ConfigurationError, DeltafanError, FieldError, ValidationError
from deltafan.wire import dumps

FAILED: Final = 1
WRONG_USE: Final = 2
TERMINATED: Final = 128 + signal.SIGTERM

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One line, at once."""
    print_line(dumps(value))


def print_line(line: bytes) -> None:
    """JSON as it is: in UTF-8, whatever the terminal's encoding."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def write(text: str) -> None:
    """Text as it comes, at once. Control characters of a terminal are shown, not obeyed."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def printable(text: str) -> str:
    """A model's text without what would move a terminal's cursor or change its title."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else "\N{REPLACEMENT CHARACTER}" for c in text)


def note(text: str) -> None:
    """A line to standard error."""
    err.print(text, style="dim", markup=False)


def fail(message: str, code: int = FAILED) -> typer.Exit:
    """Say what is wrong; raise the result."""
    err.print(f"deltafan: {message}", style="red" if err.is_terminal else None, markup=False)
    return typer.Exit(code)


def wrong(field: str, rule: str) -> ValidationError:
    return ValidationError([FieldError(field, rule)])


@contextmanager
def errors_shown() -> Iterator[None]:
    """Errors of ours end the command with a message and the right exit code."""
    try:
        yield
    except DeltafanError as error:
        raise fail(str(error), exit_code(error)) from None
    except BaseExceptionGroup as group:
        ours, rest = group.split(DeltafanError)
        if ours is None or rest is not None:
            raise
        raise fail("\n".join(str(error) for error in _leaves(ours))) from None


@contextmanager
def fields_as_flags(*arguments: str) -> Iterator[None]:
    """An error that names a field names the flag instead; `arguments` are fields that are given without one."""
    try:
        yield
    except ValidationError as error:
        raise ValidationError([FieldError(_as_flag(f.field, arguments), f.message) for f in error.fields]) from None


def _as_flag(field: str, arguments: tuple[str, ...]) -> str:
    name = field.replace("_", "-")
    return field if not field or not field[0].isalpha() or field in arguments else f"--{name}"


def exit_code(error: DeltafanError) -> int:
    return WRONG_USE if isinstance(error, ConfigurationError | ValidationError) else FAILED


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine. Ctrl-C and SIGTERM cancel it, so that what it has started ends in order."""
    with errors_shown():
        try:
            asyncio.run(_terminable(main))
        except asyncio.CancelledError:
            raise typer.Exit(TERMINATED) from None


async def _terminable(main: Coroutine[Any, Any, None]) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await main
