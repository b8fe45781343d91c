"""Who may use the HTTP API: the key, the time, the signature and the digest of the body. No I/O.

The words of the refusals are Pusher's where it is known to say them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.rules import TIMESTAMP_GRACE
from deltafan.devserver.pusher.settings import App
from deltafan.devserver.pusher.signatures import body_md5, is_signature, request_text, same

_SECONDS = re.compile(r"[0-9]{1,11}")
_LATEST: Final = 253_402_300_799
"""The last second of the year 9999, beyond which there are no dates."""


def authorize(
    app: App, method: str, path: str, query: Iterable[tuple[str, str]], body: bytes, *, app_id: str, now: float
) -> None:
    """Checks a request to `/apps/<app_id>/...`.

    :param path: as it was signed, not percent-encoded.
    :param now: the server's Unix time.
    :raises ApiError: 404 for another app, else 401.
    """
    pairs = list(query)
    given = {key.lower(): value for key, value in pairs}
    if app_id != app.app_id:
        raise ApiError(404, f"Unknown app id {app_id}")
    if not same(app.key, given.get("auth_key", "")):
        raise ApiError(401, "Unknown auth_key")
    if given.get("auth_version") != "1.0":
        raise ApiError(401, "Version not supported" if "auth_version" in given else "Version required")
    _check_time(given.get("auth_timestamp"), now)
    text, signature = request_text(method, path, pairs), given.get("auth_signature", "")
    if not is_signature(app.secret, text, signature):
        sent = f'Invalid signature: you should have sent HmacSHA256Hex("{text}", your_secret_key)'
        raise ApiError(401, f'{sent}, but you sent "{signature}"')
    if (body or "body_md5" in given) and not same(body_md5(body), given.get("body_md5", "")):
        raise ApiError(401, "Invalid body_md5: it is not the MD5 digest of the body")


def _check_time(timestamp: str | None, now: float) -> None:
    if timestamp is None:
        raise ApiError(401, "Timestamp required")
    if not _SECONDS.fullmatch(timestamp):
        raise ApiError(401, "Invalid timestamp: auth_timestamp must be Unix time in seconds")
    if abs(int(timestamp) - int(now)) >= TIMESTAMP_GRACE:
        raise ApiError(
            401,
            f"Timestamp expired: Given timestamp ({_iso(int(timestamp))}) not within {TIMESTAMP_GRACE}s "
            f"of server time ({_iso(int(now))})",
        )


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(min(seconds, _LATEST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
