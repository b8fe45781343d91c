"""SSE frames, already in HTTP/1.1 chunks: encoded once, and the same bytes object written to every client.

An HTTP/1.0 client (a proxy's default towards us, often) gets the frame without the chunk around it.
"""

from __future__ import annotations

from functools import lru_cache

from deltafan.broker.follow import gone_frame
from deltafan.broker.log import Entry
from deltafan.relay.redaction import blanked, is_hidden
from deltafan.sse import encode
from deltafan.tokens import Hidden
from deltafan.wire import VERSION, dumps


def chunked(frame: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def bare(chunk: bytes) -> bytes:
    """The frame inside a chunk that `chunked` made."""
    return chunk[chunk.index(b"\n") + 1 : -2]


def event_chunk(entry: Entry, hide: frozenset[Hidden] = frozenset()) -> bytes:
    """The entry's frame, kept with the entry for the next client; to who may not see it all, without what is hidden."""
    if hide and is_hidden(entry.type, hide):
        return _blanked_chunk(entry.data, entry.type, str(entry.id))
    if entry.frame is None:
        entry.frame = chunked(encode(entry.data, event=entry.type, id=str(entry.id)))
    return entry.frame


@lru_cache(maxsize=16)
def _blanked_chunk(data: bytes, kind: str, event_id: str) -> bytes:
    """Kept for the next client of the same feed: live events reach all of them one right after another."""
    return chunked(encode(blanked(data), event=kind, id=event_id))


def gone_chunk(job_id: str) -> bytes:
    """See `gone_frame`."""
    return chunked(gone_frame(job_id))


def heartbeat_chunk(now_ms: int) -> bytes:
    """A real event, so that a page can tell silence from death. No id: it must not move the reader's cursor."""
    return chunked(encode(dumps({"v": VERSION, "type": "heartbeat", "time": now_ms}), event="heartbeat"))
