"""The faults in a stream: what they make of its pieces, and how they end it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum

from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.faults import Fault

BROKEN_EVENT = b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"del\n\n'


class Ending(Enum):
    """How a stream ends early."""

    CUT = "cut"
    """The connection is closed; the end of the body is missing."""
    CLOSE = "close"
    """The body ends in order."""
    STALL = "stall"
    """The connection stays open, and nothing more comes."""


def with_faults(pieces: Iterable[Piece], faults: Mapping[str, Fault], error: bytes) -> Iterator[Piece | Ending]:
    """The pieces as the faults leave them. A fault after N chunks never comes when there are fewer.

    An `Ending` is the last item, and there is none when the stream ends as it should.

    :param error: the event that the `error` fault sends.
    """
    malformed = _count(faults.get("malformed"))
    sent = 0
    for piece in pieces:
        if ending := _ending(faults, sent, error):
            yield from ending
            return
        sent += piece.counted
        if piece.counted and sent == malformed:
            yield Piece(BROKEN_EVENT, True, fault="malformed")
        else:
            yield piece
    yield from _ending(faults, sent, error)  # a replay's last event is a chunk


def _ending(faults: Mapping[str, Fault], sent: int, error: bytes) -> tuple[Piece | Ending, ...]:
    for name, fault in faults.items():
        if _count(fault) != sent:
            continue
        if name == "error":
            return Piece(error, fault=name), Ending.CLOSE
        if name in ("cut", "close", "stall"):
            return (Ending(name),)
    return ()


def _count(fault: Fault | None) -> int | None:
    return None if fault is None or fault.arg is None else int(fault.arg)
