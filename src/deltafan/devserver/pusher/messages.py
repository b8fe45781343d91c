"""What the server says on a WebSocket, as bytes. No I/O.

https://pusher.com/docs/channels/library_auth_reference/pusher-websockets-protocol/
"""

from __future__ import annotations

from typing import Any, Final

import orjson

PING: Final = orjson.dumps({"event": "pusher:ping", "data": "{}"})
PONG: Final = orjson.dumps({"event": "pusher:pong", "data": "{}"})

INTERNAL: Final = "pusher_internal:"


def event(name: str, channel: str, data: str, user_id: str | None = None) -> bytes:
    """A channel's event. The data is a string whatever it holds: the receiver decodes it once more."""
    said = {"event": name, "channel": channel, "data": data}
    return orjson.dumps(said if user_id is None else said | {"user_id": user_id})


def internal(name: str, channel: str, data: dict[str, Any]) -> bytes:
    """An event about a channel, such as `subscription_succeeded`."""
    return event(INTERNAL + name, channel, json_text(data))


def established(socket_id: str, activity_timeout: float) -> bytes:
    seconds = int(activity_timeout) if activity_timeout == int(activity_timeout) else activity_timeout
    data = {"socket_id": socket_id, "activity_timeout": seconds}
    return orjson.dumps({"event": "pusher:connection_established", "data": json_text(data)})


def signed_in(user_data: str) -> bytes:
    return orjson.dumps({"event": "pusher:signin_success", "data": json_text({"user_data": user_data})})


def error(message: str, code: int | None = None, channel: str | None = None) -> bytes:
    """An error of the connection, which stays open unless it is closed as well. Its data is an object."""
    said: dict[str, Any] = {"event": "pusher:error", "data": {"code": code, "message": message}}
    return orjson.dumps(said if channel is None else said | {"channel": channel})


def subscription_error(channel: str, kind: str, message: str, status: int) -> bytes:
    data = {"type": kind, "error": message, "status": status}
    return orjson.dumps({"event": "pusher:subscription_error", "channel": channel, "data": data})


def reason(text: str) -> bytes:
    """A close frame's reason: at most 123 bytes, whole characters."""
    return text.encode(errors="replace")[:123].decode(errors="ignore").encode()


def json_text(value: object) -> str:
    return orjson.dumps(value).decode()
