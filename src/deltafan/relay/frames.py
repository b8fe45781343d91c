"""SSE frames, already in HTTP/1.1 chunks: encoded once, and the same bytes object written to every client.

An HTTP/1.0 client (a proxy's default towards us, often) gets the frame without the chunk around it.
"""

from __future__ import annotations

from deltafan.broker.log import Entry
from deltafan.sse import encode
from deltafan.wire import VERSION, dumps


def chunked(frame: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def bare(chunk: bytes) -> bytes:
    """The frame inside a chunk that `chunked` made."""
    return chunk[chunk.index(b"\n") + 1 : -2]


def event_chunk(entry: Entry) -> bytes:
    """The entry's frame, kept with the entry for the next client."""
    if entry.frame is None:
        entry.frame = chunked(encode(entry.data, event=entry.type, id=str(entry.id)))
    return entry.frame


def heartbeat_chunk(now_ms: int) -> bytes:
    """A real event, so that a page can tell silence from death. No id: it must not move the reader's cursor."""
    return chunked(encode(dumps({"v": VERSION, "type": "heartbeat", "time": now_ms}), event="heartbeat"))
