"""Pusher's signatures: HMAC-SHA256 with the app's secret, in hexadecimal. Pure functions.

https://pusher.com/docs/channels/library_auth_reference/auth-signatures/ and .../rest-api/#authentication
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def sign(secret: str, text: str | bytes) -> str:
    """The signature of a text; that of a webhook is over its body."""
    data = text if isinstance(text, bytes) else text.encode(errors="replace")
    return hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def is_signature(secret: str, text: str | bytes, given: str) -> bool:
    """Whether `given` is the signature, in constant time."""
    return same(sign(secret, text), given)


def same(expected: str, given: str) -> bool:
    """Whether two texts are equal, in constant time."""
    return hmac.compare_digest(expected.encode(), given.encode(errors="replace"))


def request_text(method: str, path: str, query: Iterable[tuple[str, str]]) -> str:
    """What is signed of an HTTP request: keys in lower case, sorted, nothing escaped, the signature itself left out."""
    pairs = sorted((key.lower(), value) for key, value in query if key.lower() != "auth_signature")
    return "\n".join((method.upper(), path, "&".join(f"{key}={value}" for key, value in pairs)))


def channel_text(socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """What is signed of a subscription; `channel_data` is the JSON text that was sent with it (presence channels)."""
    text = f"{socket_id}:{channel}"
    return text if channel_data is None else f"{text}:{channel_data}"


def user_text(socket_id: str, user_data: str) -> str:
    """What is signed of a sign-in."""
    return f"{socket_id}::user::{user_data}"


def body_md5(body: bytes) -> str:
    """The digest that binds a request's body to its signature."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
