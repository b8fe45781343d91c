"""The one app that the emulator serves, and the bounds that a test may want smaller."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from deltafan.errors import FieldError, ValidationError

MIN_SECRET = 8
"""Characters of a secret that is given: it stands for a real one, and an empty one would sign for everybody."""
_APP_ID = re.compile(r"[0-9]{1,20}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class App:
    """The app and its bounds.

    :raises ValidationError: a value breaks its rule.
    """

    app_id: str = "1"
    """Digits only: server libraries refuse others."""
    key: str = "dev-key"
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """A new one at each start, unless it is given."""
    webhook_url: str | None = None
    activity_timeout: float = 120.0
    """Seconds of a client's silence before it is pinged; clients are told the same number for ours."""
    pong_timeout: float = 30.0
    """Seconds from the ping until the connection is closed."""
    max_connections: int = 1000
    outbox_bytes: int = 4 << 20
    """Bytes that may wait for one client; who reads more slowly is cut off. One trigger can bring a client 1 MB."""

    def __post_init__(self) -> None:
        rules = {
            "app_id": (bool(_APP_ID.fullmatch(self.app_id)), "must be 1 to 20 digits"),
            "key": (bool(_KEY.fullmatch(self.key)), "must be 1 to 64 characters of A-Z a-z 0-9 _ -"),
            "secret": (
                len(self.secret) >= MIN_SECRET and self.secret.isprintable(),
                f"must be at least {MIN_SECRET} printable characters",
            ),
            "webhook_url": (
                self.webhook_url is None or _is_http(self.webhook_url),
                "must be an http:// or https:// URL",
            ),
            "activity_timeout": (0 < self.activity_timeout <= 86_400, "must be above 0, at most 86400 seconds"),
            "pong_timeout": (0 < self.pong_timeout <= 86_400, "must be above 0, at most 86400 seconds"),
            "max_connections": (self.max_connections >= 1, "must be 1 or more"),
            "outbox_bytes": (self.outbox_bytes >= 1, "must be 1 or more"),
        }
        broken = [FieldError(name, rule) for name, (kept, rule) in rules.items() if not kept]
        if broken:
            raise ValidationError(broken)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
