"""From an event to messages that fit Pusher: pure, no I/O.

A message's data is the event's wire form, at most `DATA_MAX` bytes of it. What is longer goes in several messages:

- a delta is *split* at character boundaries: messages of the same name and id, each with a piece of the text (or of
  the arguments) and with `part` and `parts`. A page that only appends text need not know of it.
- any other event is *chunked*: messages named `chunk`, whose `data`, joined in the order of `part`, is its JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from deltafan.channels import ENCRYPTED
from deltafan.events import Event, EventId, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from deltafan.wire import VERSION, dumps, encode

DATA_MAX: Final = 10_240
"""Bytes of data in one message: https://pusher.com/docs/channels/library_auth_reference/rest-api/#events."""
_NONCE: Final = 32  # 24 bytes in base64
_WRAPPING: Final = len('{"nonce": "", "ciphertext": ""}') + _NONCE
_TAG: Final = 16  # Poly1305's
ENCRYPTED_MAX: Final = (DATA_MAX - _WRAPPING) // 4 * 3 - _TAG
"""Bytes of plain data on an encrypted channel: sealing adds a tag, and base64 a third."""
_ROOM_MIN: Final = 1024
"""Bytes that a piece must have at least. A tool call's name or id may leave less: then it goes in chunks."""
CHUNK: Final = "chunk"
_NUMBERS: Final = len('"part":,"parts":,') + 2 * 6
"""Room for the numbers of a piece: up to six digits each."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: the name of the Pusher event, and its data."""

    name: str
    data: str
    event_id: EventId
    last: bool
    """It completes its event: the only one, or the last part."""


def limit_of(channel: str) -> int:
    """Bytes of data that a message on a channel may hold."""
    return ENCRYPTED_MAX if channel.startswith(ENCRYPTED) else DATA_MAX


def messages_of(job: str, event: Event, event_id: EventId, limit: int) -> list[Message]:
    """The messages that carry one event, in order."""
    data = encode(job, event_id, event, event.first)
    if len(data) <= limit:
        return [Message(event.type, data.decode(), event_id, last=True)]
    match event:
        case TextDelta() | ReasoningDelta() | RefusalDelta():
            pieces = _pieces(event.text, _room(job, event, event_id, event.text, limit))
            made = [encode(job, event_id, replace(event, text=piece), event.first) for piece in pieces]
        case ToolCallDelta() if (room := _room(job, event, event_id, event.arguments, limit)) >= _ROOM_MIN:
            pieces = _pieces(event.arguments, room)
            made = [
                encode(job, event_id, _piece_of_call(event, piece, first=place == 0), event.first)
                for place, piece in enumerate(pieces)
            ]
        case _:
            return _chunks(job, event, event_id, data.decode(), limit)
    return [
        Message(event.type, numbered.decode(), event_id, last=place == len(made) - 1)
        for place, numbered in enumerate(_numbered(made))
    ]


def _piece_of_call(event: ToolCallDelta, piece: str, *, first: bool) -> ToolCallDelta:
    return replace(event, arguments=piece) if first else replace(event, arguments=piece, call_id=None, name=None)


def _room(job: str, event: Event, event_id: EventId, text: str, limit: int) -> int:
    """Bytes that are left for a piece of the text beside the rest of the event."""
    whole = len(encode(job, event_id, event, event.first))
    return limit - (whole - _size(text)) - _NUMBERS


def _numbered(made: list[bytes]) -> Iterator[bytes]:
    for place, data in enumerate(made):
        yield data[:-1] + b',"part":%d,"parts":%d}' % (place, len(made))


def _chunks(job: str, event: Event, event_id: EventId, data: str, limit: int) -> list[Message]:
    head = b'{"v":%d,"job":%b,"id":"%b","type":"%b","of":"%b",' % (
        VERSION,
        dumps(job),
        str(event_id).encode(),
        CHUNK.encode(),
        event.type.encode(),
    )
    pieces = list(_pieces(data, limit - len(head) - len('"data":""}') - _NUMBERS))
    return [
        Message(
            CHUNK,
            (head + b'"part":%d,"parts":%d,"data":%b}' % (place, len(pieces), dumps(piece))).decode(),
            event_id,
            last=place == len(pieces) - 1,
        )
        for place, piece in enumerate(pieces)
    ]


def _pieces(text: str, room: int) -> Iterator[str]:
    """Cut a text into pieces whose JSON is at most `room` bytes, at boundaries of characters."""
    start = 0
    while start < len(text):
        length = room
        while True:
            piece = text[start : start + length]
            size = _size(piece)
            if size <= room:
                break
            # In proportion, and always less: the next try fits, or nearly. No character takes more than 6 bytes.
            length = max(1, min(len(piece) - 1, len(piece) * room // size))
        yield piece
        start += len(piece)


def _size(text: str) -> int:
    """Bytes of a text inside the quotes of a JSON string."""
    return len(dumps(text)) - 2
