"""What variables say of Pusher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError as PydanticError

from deltafan.settings import PusherSettings

_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "app_id": ("PUSHER_APP_ID",),
    "key": ("PUSHER_KEY", "PUSHER_APP_KEY", "PUSHER_AUTH_KEY"),
    "secret": ("PUSHER_SECRET", "PUSHER_APP_SECRET", "PUSHER_AUTH_SECRET"),
    "cluster": ("PUSHER_CLUSTER", "PUSHER_APP_CLUSTER"),
    "host": ("PUSHER_HOST",),
    "port": ("PUSHER_PORT",),
    "tls": ("PUSHER_TLS",),
    "encryption_master_key": ("PUSHER_ENCRYPTION_MASTER_KEY",),
    "interval": ("PUSHER_INTERVAL",),
    "timeout": ("PUSHER_TIMEOUT",),
}
"""Fields of `PusherSettings` and their variables; the first that is set counts, the others are names of other tools."""
_WORDS: Final = {
    "PUSHER_APP_ID": "must be digits, as the dashboard shows it",
    "PUSHER_HOST": "must be a host name without a scheme and a path",
}
_AUTH_VERSION: Final = "PUSHER_AUTH_VERSION"


def pusher_settings(env: Mapping[str, str], problems: list[str]) -> PusherSettings:
    """Pusher's settings; what is wrong goes to `problems`, and the defaults stand in for it."""
    names: dict[str, str] = {}
    for setting, variables in _VARIABLES.items():
        found = next((name for name in variables if env.get(name, "").strip()), None)
        if found is not None:
            names[setting] = found
    if env.get(_AUTH_VERSION, "1.0").strip() not in ("", "1.0"):
        problems.append(f"{_AUTH_VERSION}: must be 1.0, the only version there is")
    try:
        return PusherSettings.model_validate({setting: env[name].strip() for setting, name in names.items()})
    except PydanticError as error:
        for finding in error.errors(include_url=False, include_context=False, include_input=False):
            where = "".join(f"{names.get(str(part), str(part))}: " for part in finding["loc"])
            rule = finding["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
            problems.append(f"{where}{_WORDS.get(where.partition(':')[0], rule)}")
        return PusherSettings()
