"""Pusher, as the relay sees it: where browsers connect, and `POST /pusher/auth`, which lets them subscribe.

A signature is given to who may follow what is on the channel: private, presence and encrypted channels alike.
https://pusher.com/docs/channels/library_auth_reference/auth-signatures/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web
from pusher.authentication_client import AuthenticationClient

from deltafan.broker.status import JobStatus
from deltafan.channels import ENCRYPTED, JOB_CHANNEL, PRESENCE, PRIVATE, channel_problem
from deltafan.errors import FieldError, JobNotFound, ValidationError
from deltafan.job import JOB_ID
from deltafan.relay.answers import Refusal, answer
from deltafan.relay.body import json_object, read_body
from deltafan.relay.context import OWNERSHIP, PUSHER, may_follow, queue_of
from deltafan.relay.principal import Principal, require
from deltafan.settings import PusherSettings

AUTH_URL: Final = "/pusher/auth"
DEFAULT_CLUSTER: Final = "mt1"
"""Where an app is that names none."""
MAX_BODY: Final = 4096
MAX_FIELDS: Final = 20
USER_ID_MAX: Final = 128
"""Characters of a presence channel's user id: the service's limit."""

_NOT_YOURS = (
    "this channel is not one that you may follow, or there is no such; a token that names no channels opens the jobs' "
    f"own only ({JOB_CHANNEL}<id>)"
)
_SOCKET_ID = re.compile(r"[0-9]{1,20}\.[0-9]{1,20}")
_USER_ID = re.compile(r"[-A-Za-z0-9_=@,.;]+")
_FORM = "application/x-www-form-urlencoded"


def connection(settings: PusherSettings, channels: tuple[str, ...]) -> dict[str, Any]:
    """What a browser needs to follow on Pusher. Nothing of it is a secret."""
    port = (settings.port or (443 if settings.tls else 80)) if settings.host else None
    return {
        "key": settings.key,
        "cluster": None if settings.host else settings.cluster or DEFAULT_CLUSTER,
        "host": settings.host,
        "port": port,
        "tls": settings.tls,
        "channels": list(channels),
        "auth_url": AUTH_URL,
    }


def pusher_of(request: web.Request, channels: tuple[str, ...]) -> dict[str, Any]:
    """`{"pusher": …}` for a job that goes to Pusher, else nothing."""
    settings = request.app[PUSHER]
    if not channels or not settings.configured:
        return {}
    return {"pusher": connection(settings, channels)}


async def auth(request: web.Request) -> web.Response:
    """`socket_id` and `channel_name`, as a form or as JSON, as pusher-js sends them.

    :raises Refusal: 404 without Pusher; 403 for a channel that who asks may not follow, whether or not there is such.
    :raises ValidationError: naming the field that is wrong.
    """
    settings = request.app[PUSHER]
    if not settings.configured:
        raise Refusal(
            404, "Pusher is not set up at this relay: PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET are missing"
        )
    principal = require(request, "read")
    socket_id, channel = _asked(await _fields(request))
    if channel.startswith(ENCRYPTED) and settings.encryption_master_key is None:
        raise Refusal(404, f"{ENCRYPTED} channels need PUSHER_ENCRYPTION_MASTER_KEY, which is not set at this relay")
    if principal.hide:
        raise Refusal(403, "a token that hides something may not subscribe to Pusher, where everything is shown")
    if not await _may_subscribe(request, principal, channel):
        raise Refusal(403, _NOT_YOURS)
    return answer(sign(settings, socket_id, channel, _user_id(principal)))


def sign(settings: PusherSettings, socket_id: str, channel: str, user_id: str) -> dict[str, Any]:
    """The answer that pusher-js hands on to the service."""
    key = settings.encryption_master_key
    client = AuthenticationClient(
        settings.app_id,
        settings.key,
        settings.secret.get_secret_value(),
        encryption_master_key_base64=key.get_secret_value() if key is not None else None,
        backend=_no_backend,
    )
    user = {"user_id": user_id, "user_info": {}} if channel.startswith(PRESENCE) else None
    signed: dict[str, Any] = client.authenticate(channel, socket_id, user)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in signed.items()}


def _no_backend(_: object) -> None:
    """Signing asks nobody; the package's own backend would load an HTTP client."""


async def _may_subscribe(request: web.Request, principal: Principal, channel: str) -> bool:
    if channel.startswith(JOB_CHANNEL):
        status = await _status(request, channel.removeprefix(JOB_CHANNEL))
        return status is not None and may_follow(request, principal, status)
    if not request.app[OWNERSHIP].is_of(principal.tenant, channel):
        return False
    if principal.grant is None or principal.grant.matches(channel):
        return True
    for job_id in principal.grant.jobs:
        status = await _status(request, job_id)
        if status is not None and channel in status.pusher_channels:
            return True
    return False


async def _status(request: web.Request, job_id: str) -> JobStatus | None:
    if not JOB_ID.fullmatch(job_id):
        return None
    try:
        return await queue_of(request).job(job_id).status()
    except JobNotFound:
        return None


def _user_id(principal: Principal) -> str:
    """Who somebody is on a presence channel: the token's subject; else the same for all who may do the same."""
    subject = principal.grant.subject if principal.grant is not None else None
    if subject is not None and len(subject) <= USER_ID_MAX and _USER_ID.fullmatch(subject):
        return subject
    named = f"{principal.tenant}:{principal.name}"
    return f"u-{hashlib.sha256(named.encode()).hexdigest()[:32]}"


async def _fields(request: web.Request) -> Mapping[str, object]:
    kind = request.content_type
    if kind not in (_FORM, "application/json"):
        raise Refusal(415, f"send a form ({_FORM}) or JSON (application/json)")
    raw = await read_body(request, MAX_BODY)
    if kind == "application/json":
        return json_object(raw)
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise Refusal(400, f"the form cannot be read: UTF-8, and at most {MAX_FIELDS} fields") from None
    fields = dict(pairs)
    repeated = [name for name in fields if sum(other == name for other, _ in pairs) > 1]
    if repeated:
        raise ValidationError([FieldError(name, "must be given once") for name in repeated[:1]])
    return fields


def _asked(fields: Mapping[str, object]) -> tuple[str, str]:
    wrong: list[FieldError] = []
    socket_id, channel = fields.get("socket_id"), fields.get("channel_name")
    if not isinstance(socket_id, str) or not _SOCKET_ID.fullmatch(socket_id):
        wrong.append(FieldError("socket_id", "is required: two numbers with a dot between, as the service gives it"))
    if not isinstance(channel, str) or not channel:
        wrong.append(FieldError("channel_name", "is required: one channel's name, as text"))
    elif problem := channel_problem(channel):
        wrong.append(FieldError("channel_name", problem))
    elif not channel.startswith((PRIVATE, PRESENCE)):
        wrong.append(FieldError("channel_name", f"must begin with {PRIVATE} or {PRESENCE}: others need no permission"))
    if wrong:
        raise ValidationError(wrong)
    return str(socket_id), str(channel)
