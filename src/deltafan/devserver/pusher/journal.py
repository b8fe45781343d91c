"""What was published and what was asked: the most recent, for tests and for looking."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from deltafan.devserver.pusher.triggers import Trigger

MAX_MESSAGES: Final = 5000
"""With 10 KB of data each, 50 MB at the very most."""
MAX_REQUESTS: Final = 5000


@dataclass(frozen=True, slots=True)
class Message:
    """One event on one channel."""

    number: int
    """From 1, in the order of publishing."""
    request: int
    """The number of the request that brought it."""
    time: float
    """Unix time in seconds."""
    channel: str
    name: str
    data: str
    socket_id: str | None
    """The connection that did not get it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class RequestRecord:
    """One request to the HTTP API. Changes until it is answered."""

    number: int
    """From 1, in the order of arrival."""
    method: str
    path: str
    time: float = field(default_factory=time.time)
    """When it came: Unix time in seconds."""
    events: int = 0
    """Events that it published; an event for several channels is one."""
    status: int | None = None
    """That of the answer; `None` when there was none (yet)."""
    faults: list[str] = field(default_factory=list)
    """The faults that it met."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Journal:
    """Messages and requests, oldest first. The oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque(maxlen=MAX_MESSAGES)
        self._requests: deque[RequestRecord] = deque(maxlen=MAX_REQUESTS)
        self._published = 0
        self._asked = 0

    @property
    def messages(self) -> list[Message]:
        return list(self._messages)

    @property
    def requests(self) -> list[RequestRecord]:
        return list(self._requests)

    def begin(self, method: str, path: str, faults: Iterable[str]) -> RequestRecord:
        self._asked += 1
        record = RequestRecord(self._asked, method, path, faults=list(faults))
        self._requests.append(record)
        return record

    def published(self, record: RequestRecord, trigger: Trigger) -> None:
        now = time.time()
        record.events += 1
        for channel in trigger.channels:
            self._published += 1
            self._messages.append(
                Message(self._published, record.number, now, channel, trigger.name, trigger.data, trigger.socket_id)
            )

    def clear(self) -> int:
        """Forgets everything but the numbers. Answers how many messages there were."""
        number = len(self._messages)
        self._messages.clear()
        self._requests.clear()
        return number
