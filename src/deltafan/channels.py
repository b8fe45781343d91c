"""Names of Pusher channels: the service's rule, and the channel that a job has by itself."""

from __future__ import annotations

import re
from typing import Final

CHANNEL_MAX: Final = 164
"""Characters in a channel name: the service's limit (the `pusher` package lets 200 pass)."""
ENCRYPTED: Final = "private-encrypted-"
PRESENCE: Final = "presence-"
PRIVATE: Final = "private-"
PUSHER: Final = "pusher"
"""The name by which jobs ask for the Pusher sink."""
JOB_CHANNEL: Final = "private-job-"
"""What a job's own channel begins with, and no other may."""

_NAME = re.compile(r"[-A-Za-z0-9_=@,.;]+")
# https://pusher.com/docs/channels/using_channels/channels/#channel-naming-conventions; a bare prefix names nothing.
_PREFIXES = (ENCRYPTED, "private-cache-", "presence-cache-", PRIVATE, PRESENCE, "cache-")


def channel_problem(name: str) -> str | None:
    """The rule that a Pusher channel's name breaks; `None` for a good one."""
    if len(name) > CHANNEL_MAX:
        return f"must have at most {CHANNEL_MAX} characters"
    if not _NAME.fullmatch(name):
        return "may hold letters, digits and _ - = @ , . ; only"
    if name in _PREFIXES:
        return "is a prefix only; a name must follow it"
    return None


def job_channel(job_id: str) -> str:
    """The Pusher channel of a job that names none: private, because an id is no secret."""
    return JOB_CHANNEL + job_id


def bare(name: str) -> str:
    """The name without what tells the kind of channel."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
