"""Events as bytes: one flat JSON object an event, the same bytes in the log, in pub/sub and in an SSE frame.

`{"v":1,"job":"0-01k…","id":"1-5","type":"text_delta","text":"Hel"}`: `v`, `job`, `id` and `type` come first, in this
order, so that a relay can read them without parsing the rest. Readers ignore fields they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any, Final, NamedTuple

import orjson

from deltafan.errors import FieldError, ValidationError
from deltafan.events import (
    EVENT_CLASSES,
    Event,
    EventId,
    ReasoningDelta,
    TextDelta,
)

VERSION: Final = 1
MAX_ATTEMPT: Final = 2**31 - 1
_EVENT_ID = re.compile(r"([1-9][0-9]{0,9})-(0|[1-9][0-9]{0,17})")
_SURROGATES = re.compile("[\ud800-\udfff]")
_ENVELOPE = frozenset({"v", "job", "id", "type", "first"})
_INTERNAL = frozenset({"finish_reasons"})  # of a completion: no wire carries it
_NO_PAYLOAD = _ENVELOPE | _INTERNAL
# A tool call's own id cannot be `id` in a flat object whose `id` is the event's.
_SKIP_WHEN: Final[Mapping[str, Any]] = {
    "choice": 0,
    "restart": False,
    "continued": False,
    "call_id": None,
    "name": None,
    "status": None,
    "error": None,
    "id": None,
    "first": None,
    "job": None,
}


def parse_event_id(text: str, field: str = "after") -> EventId:
    """Read `<attempt>-<seq>`.

    :raises ValidationError: naming `field`, when it is anything else.
    """
    match = _EVENT_ID.fullmatch(text)
    if match is None or int(match[1]) > MAX_ATTEMPT:
        raise ValidationError([FieldError(field, "must be an event id, <attempt>-<seq>, such as 1-5")])
    return EventId(int(match[1]), int(match[2]))


def dumps(value: object) -> bytes:
    """JSON bytes of any JSON value. A lone surrogate, which UTF-8 cannot carry, becomes U+FFFD."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_mend(value))


def _mend(value: object) -> object:
    match value:
        case str():
            return _SURROGATES.sub("\ufffd", value)  # one for one: the length that `done` tells stays right
        case dict():
            return {_mend(str(k)): _mend(v) for k, v in value.items()}
        case list() | tuple():
            return [_mend(v) for v in value]
        case int() if not -(2**63) <= value < 2**64:
            return str(value)
        case _:
            return value


def encode(job: str, event_id: EventId, event: Event, first: EventId | None = None) -> bytes:
    """The wire form of `event` as the event `event_id` of `job`. `first` marks a merged run (see `Event.first`)."""
    since = b"" if first is None or first == event_id else b'","first":"%d-%d' % first
    head = b'{"v":1,"job":"%b","id":"%d-%d%b","type":"%b"' % (
        job.encode(),
        event_id.attempt,
        event_id.seq,
        since,
        event.type.encode(),
    )
    if isinstance(event, TextDelta | ReasoningDelta) and event.choice == 0:  # the hot path
        return head + b',"text":' + dumps(event.text) + b"}"
    body = dumps(payload(event))
    return head + b"}" if body == b"{}" else head + b"," + body[1:]


def payload(event: Event) -> dict[str, Any]:
    """The fields of an event that go on the wire, without the envelope."""
    values: dict[str, Any] = {}
    for f in fields(event):
        value = getattr(event, f.name)
        if f.name in _SKIP_WHEN and value == _SKIP_WHEN[f.name] and type(value) is type(_SKIP_WHEN[f.name]):
            continue
        if f.name not in _NO_PAYLOAD:
            values[f.name] = value
    if values.get("error") is not None and event.type == "tool_result":
        del values["result"]
    return values


def decode(data: bytes | str) -> Event | None:
    """Read an event from the wire. `None` is an event of a type that this version does not know.

    :raises ValidationError: when it is not an event at all.
    """
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValidationError([FieldError("", f"not a JSON object: {error}")]) from None
    if not isinstance(raw, dict):
        raise ValidationError([FieldError("", "not a JSON object")])
    return from_object(raw)


def from_object(raw: Mapping[str, Any]) -> Event | None:
    """As `decode`, of a parsed object."""
    name, event_id = raw.get("type"), raw.get("id")
    if not isinstance(name, str):
        raise ValidationError([FieldError("type", "must be a string")])
    if raw.get("v") != VERSION:
        raise ValidationError([FieldError("v", f"must be {VERSION}")])
    cls = EVENT_CLASSES.get(name)
    if cls is None:
        return None
    known = {f.name for f in fields(cls)} - _ENVELOPE
    values = {key: value for key, value in raw.items() if key in known}
    if isinstance(event_id, str):
        values["id"] = parse_event_id(event_id, "id")
    if isinstance(raw.get("first"), str):
        values["first"] = parse_event_id(raw["first"], "first")
    values["job"] = raw.get("job")
    return cls(**values)


class Head(NamedTuple):
    """What a relay needs of an encoded event."""

    id: EventId
    type: str


def peek(data: bytes) -> Head:
    """Read id and type of an event that `encode` made, without parsing it.

    Job ids and types hold no quotes, so the first `"id":"` is the envelope's.

    :raises ValueError: when the bytes are not of that form.
    """
    start = data.index(b'"id":"') + 6
    end = data.index(b'"', start)
    attempt, _, seq = data[start:end].partition(b"-")
    start = data.index(b'"type":"', end) + 8
    return Head(EventId(int(attempt), int(seq)), data[start : data.index(b'"', start)].decode())


def schema() -> dict[str, Any]:
    """The JSON Schema of the wire format, as it ships with the package."""
    loaded: dict[str, Any] = orjson.loads(files("deltafan").joinpath("event.schema.json").read_bytes())
    return loaded
