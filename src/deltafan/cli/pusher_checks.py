"""The doctor's check of Pusher: does it answer to our key?"""

from __future__ import annotations

from deltafan.cli.finding import Finding
from deltafan.settings import PusherSettings
from deltafan.sinks.pusher.api import ApiError, Forbidden, PusherApi, Transient, Unauthorized


async def check_pusher(settings: PusherSettings) -> Finding:
    """Ask for the app's channels, which costs nothing."""
    if not settings.configured:
        return Finding("pusher", "ok", "not set up (PUSHER_APP_ID, PUSHER_KEY, PUSHER_SECRET)")
    place = settings.host or (f"cluster {settings.cluster}" if settings.cluster else "the default cluster")
    about = f"app {settings.app_id} at {place}"
    try:
        async with PusherApi(settings) as api:
            await api.check()
    except Unauthorized as error:
        return Finding("pusher", "fail", f"{about}: {error}", "check PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET")
    except Forbidden as error:
        mend = "check PUSHER_APP_ID and PUSHER_CLUSTER or PUSHER_HOST; or the app is disabled, or over its quota"
        return Finding("pusher", "fail", f"{about}: {error}", mend)
    except Transient as error:
        mend = "check the network and PUSHER_CLUSTER; or PUSHER_HOST, PUSHER_PORT and PUSHER_TLS (false for plain HTTP)"
        return Finding("pusher", "fail", f"{about}: {error}", mend)
    except ApiError as error:
        return Finding("pusher", "warn", f"{about}: {error}", "check PUSHER_HOST and PUSHER_PORT")
    if settings.encryption_master_key is None:
        return Finding("pusher", "ok", f"{about} answers (no key for encrypted channels)")
    return Finding("pusher", "ok", f"{about} answers")
