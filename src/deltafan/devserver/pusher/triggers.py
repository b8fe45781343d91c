"""The body of a publishing request, checked against the service's rules. No I/O.

Parameters in the query string, which Pusher accepts and advises against, are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.rules import (
    ENCRYPTED,
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_DATA,
    MAX_EVENT_NAME,
    SOCKET_ID,
    channel_problem,
)

TOO_LARGE = f"The data content of this event exceeds the allowed maximum ({MAX_DATA} bytes)"
ATTRIBUTES = ("user_count", "subscription_count")


@dataclass(frozen=True, slots=True)
class Trigger:
    """One event, for one channel or several."""

    name: str
    data: str
    channels: tuple[str, ...]
    socket_id: str | None
    """The connection that does not get it."""
    info: tuple[str, ...] | None
    """The attributes of the channels that the answer shall tell; `None` when it was not asked."""


def parse_event(body: bytes) -> Trigger:
    """Reads the body of `POST events`.

    :raises ApiError: 413 for too much data, else 400.
    """
    return _trigger(_object(body, "the body"), batched=False)


def parse_batch(body: bytes) -> list[Trigger]:
    """Reads the body of `POST batch_events`. One bad event refuses all.

    :raises ApiError: as `parse_event` does.
    """
    batch = _object(body, "the body").get("batch")
    if not isinstance(batch, list) or not 1 <= len(batch) <= MAX_BATCH:
        raise ApiError(400, f"batch: must be an array of 1 to {MAX_BATCH} events")
    triggers: list[Trigger] = []
    for index, event in enumerate(batch):
        if not isinstance(event, dict):
            raise ApiError(400, f"batch[{index}]: must be a JSON object")
        try:
            triggers.append(_trigger(event, batched=True))
        except ApiError as error:
            raise ApiError(error.status, f"batch[{index}]: {error.message}") from None
    return triggers


def parse_info(text: str) -> tuple[str, ...]:
    """Reads a comma separated list of attributes.

    :raises ApiError: 400.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown:
        raise ApiError(400, f"info: unknown attribute {unknown[0]!r}; one of {', '.join(ATTRIBUTES)}")
    return names


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"{what} must be JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"{what} must be a JSON object")
    return value


def _trigger(event: Mapping[str, Any], *, batched: bool) -> Trigger:
    name, data, socket_id, info = (event.get(key) for key in ("name", "data", "socket_id", "info"))
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_EVENT_NAME:
        raise ApiError(400, f"name: must be a string of 1 to {MAX_EVENT_NAME} characters")
    if not isinstance(data, str):
        raise ApiError(400, "data: must be a string; other values are sent as their JSON text")
    channels = _channels(event, batched=batched)
    if len(data.encode()) > MAX_DATA:
        raise ApiError(413, TOO_LARGE)
    if socket_id is not None and not (isinstance(socket_id, str) and SOCKET_ID.fullmatch(socket_id)):
        raise ApiError(400, "socket_id: must be two numbers with a dot between them")
    if info is not None and not isinstance(info, str):
        raise ApiError(400, "info: must be a string")
    return Trigger(name, data, channels, socket_id, None if info is None else parse_info(info))


def _channels(event: Mapping[str, Any], *, batched: bool) -> tuple[str, ...]:
    names = event.get("channels")
    if batched or names is None:
        if names is not None:
            raise ApiError(400, "channels: an event of a batch has one channel, named `channel`")
        names = [event.get("channel")]
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_CHANNELS:
        raise ApiError(400, f"channels: must be an array of 1 to {MAX_CHANNELS} names")
    for name in names:
        if not isinstance(name, str):
            raise ApiError(400, "channel: must be a string")
        if problem := channel_problem(name):
            raise ApiError(400, f"channel: {name[:200]!r} {problem}")
    if len(names) > 1 and any(name.startswith(ENCRYPTED) for name in names):
        raise ApiError(400, "channels: an encrypted channel must be the only one of a trigger")
    return tuple(dict.fromkeys(names))
