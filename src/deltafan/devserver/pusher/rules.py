"""The service's rules for names and sizes.

They are written out here although other parts of deltafan know some of them: a judge shares no code with the judged.
Documented at https://pusher.com/docs/channels/library_auth_reference/rest-api/ and .../using_channels/channels/.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DATA: Final = 10_240
"""Bytes of an event's data, in UTF-8."""
MAX_CHANNELS: Final = 100
"""Channels of one trigger."""
MAX_BATCH: Final = 10
"""Events of one batch."""
MAX_EVENT_NAME: Final = 200
MAX_CHANNEL_NAME: Final = 164
MAX_MEMBERS: Final = 100
"""Users on a presence channel."""
MAX_USER_ID: Final = 128
MAX_USER_INFO: Final = 1024
"""Bytes of what is told of a member, as JSON."""
CLIENT_EVENTS_A_SECOND: Final = 10
TIMESTAMP_GRACE: Final = 600
"""Seconds between a request's time and the server's from which on it is refused."""

MAX_SUBSCRIPTIONS: Final = 1000
"""Channels of one connection. Our own bound."""
MAX_FRAME: Final = 64 << 10
"""Bytes of a frame that a client sends: a client event with room to spare. Our own bound."""
MAX_BODY: Final = 1 << 20
"""Bytes of a request: ten events, every character escaped. Our own bound."""

PRIVATE: Final = "private-"
PRESENCE: Final = "presence-"
ENCRYPTED: Final = "private-encrypted-"
TO_USER: Final = "#server-to-user-"
"""Before a user's id: the channel that reaches all connections that are signed in as that user."""
CLIENT_EVENT: Final = "client-"

SOCKET_ID: Final = re.compile(r"[0-9]{1,20}\.[0-9]{1,20}")

_ALPHABET = re.compile(r"[-A-Za-z0-9_=@,.;]+")


def channel_problem(name: str) -> str | None:
    """The rule that a channel's name breaks; `None` for a good one."""
    if len(name) > MAX_CHANNEL_NAME:
        return f"must be at most {MAX_CHANNEL_NAME} characters long"
    if not _ALPHABET.fullmatch(name.removeprefix(TO_USER)):
        return "must have one or more characters of A-Z a-z 0-9 _ - = @ , . ; only"
    return None


def is_authorized(name: str) -> bool:
    """Whether subscribing takes an authorization."""
    return name.startswith((PRIVATE, PRESENCE))
