"""What the tests of the Pusher way share: settings for an emulator, and a reader of what it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from deltafan.devserver.pusher import Message, PusherEmulator
from deltafan.events import Event
from deltafan.settings import PusherSettings
from deltafan.wire import decode

MASTER_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
"""32 bytes."""


def settings_of(emulator: PusherEmulator, **changes: Any) -> PusherSettings:
    values: dict[str, Any] = {
        "app_id": emulator.app_id,
        "key": emulator.key,
        "secret": emulator.secret,
        "host": emulator.host,
        "port": emulator.port,
        "tls": False,
        "interval": 0.01,
        "encryption_master_key": MASTER_KEY,
    }
    return PusherSettings(**(values | changes))


def read(messages: Sequence[Message]) -> list[Event]:
    """The events of one channel, as a reader has them: pieces joined, what it has seen dropped."""
    events: list[Event] = []
    chunks: dict[str, dict[int, str]] = {}
    last: tuple[Any, int] | None = None
    for message in messages:
        raw = orjson.loads(message.data)
        assert message.name == raw["type"]
        if raw["type"] == "chunk":
            parts = chunks.setdefault(raw["id"], {})
            parts[raw["part"]] = raw["data"]
            if len(parts) < raw["parts"]:
                continue
            event = decode("".join(parts[place] for place in range(raw["parts"])))
        else:
            event = decode(message.data)
        assert event is not None
        assert event.id is not None
        place = (event.id, raw.get("part", 0) if raw["type"] != "chunk" else 0)
        if last is not None and place <= last:
            continue
        last = place
        events.append(event)
    return events
