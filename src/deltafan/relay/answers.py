"""What the relay answers when something is wrong: one JSON shape, whoever found it.

`{"error":{"code","message","fields":[{"field","message"}]}}`: `code` is stable, `message` is for people, `fields` names
what a caller should mend. Nothing of the inside (addresses, exceptions, stack traces) is ever told; it is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deltafan.errors import (
    BrokerUnavailable,
    ConfigurationError,
    ConflictError,
    DeltafanError,
    FieldError,
    JobNotFound,
    LogExpired,
    QueueFull,
    ValidationError,
)
from deltafan.telemetry.hooks import Signal
from deltafan.wire import dumps

RETRY_AFTER = 2
"""Seconds that a client should wait when Redis is away or this process is full or draining."""
QUEUE_RETRY_AFTER = 10
"""Seconds that a client should wait when the queue is at its bound: it has to be worked off first."""

CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection before its answer was complete."""

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    429: "rate_limited",
    431: "headers_too_large",
    500: "internal",
}

CODE: Final = web.RequestKey("code", str)
"""Why a request was refused, for the access log."""

logger = logging.getLogger("deltafan.relay")


class Refusal(Exception):
    """A request that is answered with an error. Raised anywhere below the `errors` middleware."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        fields: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, f"http_{status}")
        self.fields = tuple(fields)
        self.headers = dict(headers or {})


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer. It is never cached: it tells the state of the moment."""
    return web.Response(
        body=value if isinstance(value, bytes) else dumps(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def refusal(error: Refusal) -> web.Response:
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "fields": [{"field": f.field, "message": f.message} for f in error.fields],
    }
    return answer({"error": body}, error.status, error.headers)


def unavailable(message: str, code: str = "unavailable", retry_after: int = RETRY_AFTER) -> Refusal:
    return Refusal(503, message, code=code, headers={"Retry-After": str(retry_after)})


class Met(Protocol):
    """Who is told how requests fare at Redis."""

    def failed(self, activity: str, error: BrokerUnavailable | ConfigurationError) -> None: ...

    def went_well(self, activity: str) -> None: ...


def errors(outage: Met) -> Middleware:
    """Turns whatever a handler raises into an answer.

    :param outage: told when Redis fails a request, and when requests to the same address are answered again.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        activity = f"{request.method} {resource.canonical if resource is not None else ''}"
        try:
            response = await handler(request)
        except Exception as error:
            if isinstance(error, BrokerUnavailable | ConfigurationError):
                outage.failed(activity, error)
            refused = _refused(request, error)
            request[CODE] = refused.code
            return refusal(refused)
        outage.went_well(activity)
        return response

    return middleware


def told_in_log(signal: Signal) -> None:
    """A hook that writes to the relay's log: whoever runs the relay inside of an app has a logging of its own."""
    fields = " ".join(f"{name}={value}" for name, value in signal.fields.items())
    logger.log(logging.getLevelNamesMapping()[signal.level.upper()], "%s %s", signal.name, fields)


def _refused(request: web.Request, error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case web.HTTPException():
            return _of_http(request, error)
        case DeltafanError():
            return _of_ours(error)
        case web.RequestPayloadError():
            return Refusal(400, "the body cannot be decoded: check Transfer-Encoding")
        case ConnectionError():
            return Refusal(CLIENT_LEFT, "the client has left")  # nobody reads it; the access log shows the status
        case _:
            logger.error("%s %s failed", request.method, request.rel_url.raw_path, exc_info=error)
            return Refusal(500, "the relay failed; its log says why")


def _of_http(request: web.Request, error: web.HTTPException) -> Refusal:
    """What aiohttp itself refuses: no such address, method, size, …"""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return too_large(request.client_max_size)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not possible here; allowed: {allowed}"
        return Refusal(405, message, headers={"Allow": allowed})
    if error.status == HTTPStatus.NOT_FOUND:
        return Refusal(404, f"there is nothing at {request.rel_url.raw_path[:200]}")
    return Refusal(error.status, error.reason)


def _of_ours(error: DeltafanError) -> Refusal:
    match error:
        case ValidationError():
            return Refusal(422, error.message, code=error.code, fields=error.fields)
        case JobNotFound():
            return Refusal(404, error.message, code=error.code)
        case ConflictError():
            return Refusal(409, error.message, code=error.code)
        case LogExpired():
            return Refusal(410, error.message, code=error.code)
        case QueueFull():
            return unavailable(error.message, error.code, QUEUE_RETRY_AFTER)
        case BrokerUnavailable():
            return unavailable("Redis cannot be reached or does not serve now; try again")
        case ConfigurationError():
            return unavailable("the relay is not set up right; its log says why", error.code)
        case _:
            logger.error("%s", error)
            return Refusal(500, "the relay failed; its log says why")


def too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit:,} bytes")
