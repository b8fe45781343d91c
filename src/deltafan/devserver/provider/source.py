"""Where an answer's text comes from: a text, the provider's own, the user's words, or a recorded stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deltafan.errors import FieldError, ValidationError

MAX_TEXT = 1 << 20
"""Characters of a scripted text. Our own bound: an answer's pieces are held in memory while it is sent."""
MAX_REPLAY = 64 << 20
"""Bytes of a recorded stream, which is held in memory as long as the provider runs. Our own bound."""

# A whole event: up to and with the blank lines after it. CR, LF and CRLF each end a line; `\r(?!\n)` keeps CRLF whole.
_EVENT = re.compile(rb".+?(?:\r\n|\n|\r(?!\n)){2,}|.+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Written:
    """A few hundred words that the provider writes itself; different prompts get slightly different ones."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str

    def __post_init__(self) -> None:
        check_text("text", self.text)


@dataclass(frozen=True, slots=True)
class Echo:
    """The text of the last user message."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded event stream, sent byte for byte; `events` are its bytes, cut between events."""

    events: tuple[bytes, ...]


Source = Written | Text | Echo | Replay


def replay(recording: bytes) -> Replay:
    """:raises ValidationError: the recording is empty or too long."""
    if not recording:
        raise ValidationError([FieldError("replay", "holds no events")])
    if len(recording) > MAX_REPLAY:
        raise ValidationError([FieldError("replay", f"must be at most {MAX_REPLAY} bytes")])
    return Replay(tuple(_EVENT.findall(recording)))


def read_source(
    *, text: str | None = None, text_file: Path | None = None, replay_file: Path | None = None, echo: bool = False
) -> Source:
    """The source that the given options name, files read; with none of them the provider writes a text itself.

    :raises ValidationError: more than one is given, or a file cannot be used; names `text`, `text_file`, `replay` or
        `echo`.
    """
    given = [
        name
        for name, is_given in (
            ("text", text is not None),
            ("text_file", text_file is not None),
            ("replay", replay_file is not None),
            ("echo", echo),
        )
        if is_given
    ]
    if len(given) > 1:
        raise ValidationError([FieldError(given[1], f"cannot be combined with {given[0]}")])
    if text is not None:
        return Text(text)
    if text_file is not None:
        return _text_from(text_file)
    if replay_file is not None:
        return replay(_read(replay_file, "replay", MAX_REPLAY))
    return Echo() if echo else Written()


def check_text(field: str, text: str) -> None:
    """:raises ValidationError: the text is too long, or cannot be sent as UTF-8."""
    if len(text) > MAX_TEXT:
        raise ValidationError([FieldError(field, f"must be at most {MAX_TEXT} characters")])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError([FieldError(field, "must be valid UTF-8")]) from None


def _text_from(path: Path) -> Text:
    try:
        text = _read(path, "text_file", 4 * MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise ValidationError([FieldError("text_file", f"{path} must be UTF-8 text")]) from None
    check_text("text_file", text)
    return Text(text)


def _read(path: Path, field: str, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValidationError([FieldError(field, f"{path} cannot be read: {error.strerror}")]) from None
    if len(content) > limit:
        raise ValidationError([FieldError(field, f"{path} must be at most {limit} bytes")])
    return content
