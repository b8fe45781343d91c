"""Signals and the standard library's log records as lines: for people on a terminal, as JSON elsewhere."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Literal

import structlog

from deltafan.telemetry.hooks import Hook, Signal

LogFormat = Literal["auto", "text", "json"]


def configure(level: str = "info", style: LogFormat = "auto") -> None:
    """Send structlog's lines to stderr. Call it once, in a program; a library does not."""
    if style == "auto":
        style = "text" if sys.stderr.isatty() else "json"
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    renderers: list[structlog.typing.Processor] = (
        [_headed_stack, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if style == "text"
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(_StandardError()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.handlers = [_Bridge()]
    logging.getLogger("deltafan").setLevel(number)


def _headed_stack(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """structlog puts a stack below its line, and does not say what it is."""
    stack = event.get("stack")
    if isinstance(stack, str):
        event["stack"] = f"stack:{chr(10) if chr(10) in stack else ' '}{stack}"
    return event


class _StandardError:
    """Standard error as it is now. A line that cannot be written (a closed pipe, a full disk) costs nobody anything:
    an error here would end the request or the job that had something to say.
    """

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


class _Bridge(logging.Handler):
    """Writes records of the standard library's logging as lines of ours."""

    def __init__(self) -> None:
        super().__init__()
        self._log = structlog.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        getattr(self._log, level, self._log.info)(record.getMessage(), logger=record.name, exc_info=record.exc_info)


def log_hook() -> Hook:
    """A hook that writes each signal as a line."""
    log = structlog.get_logger()

    def hook(signal: Signal) -> None:
        getattr(log, signal.level)(signal.name, **signal.fields)

    return hook
