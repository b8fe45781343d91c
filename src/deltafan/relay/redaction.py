"""What a token's `hide` takes out of a job's events. Ids stay without gaps; a blanked event says `"hidden":true`.

Types are hidden unless they are known to show nothing: one that a later version writes is blanked, too, for whoever has
anything hidden. Of a blanked event, only fields that are known to be harmless remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from deltafan.broker.log import Entry
from deltafan.tokens import Hidden
from deltafan.wire import dumps

_HIDDEN_BY: Final[Mapping[str, Hidden]] = {
    "reasoning_delta": "reasoning",
    "tool_call_delta": "tool_arguments",
    "tool_result": "tool_results",
}
_SHOWN: Final = frozenset({"meta", "text_delta", "refusal_delta", "usage", "error", "done"})
_ENVELOPE: Final = ("v", "job", "id", "first", "type")
_KEPT: Final = (*_ENVELOPE, "choice", "index", "call_id", "name")
_BLANKS: Final[Mapping[str, Any]] = {"text": "", "arguments": "", "result": None, "error": ""}


def is_hidden(kind: str, hide: frozenset[Hidden]) -> bool:
    """Whether events of a type are blanked for who has this hidden."""
    if not hide or kind in _SHOWN:
        return False
    part = _HIDDEN_BY.get(kind)
    return part is None or part in hide


def blanked(data: bytes) -> bytes:
    """An event's wire form without its content."""
    event = orjson.loads(data)
    names = _KEPT if event["type"] in _HIDDEN_BY else _ENVELOPE
    kept = {name: event[name] for name in names if name in event}
    return dumps(kept | {name: blank for name, blank in _BLANKS.items() if name in event} | {"hidden": True})


def shown(entry: Entry, hide: frozenset[Hidden]) -> bytes:
    """An entry's wire form as who has this hidden sees it."""
    return blanked(entry.data) if is_hidden(entry.type, hide) else entry.data
