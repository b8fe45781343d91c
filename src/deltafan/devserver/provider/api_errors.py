"""Errors in OpenAI's shape: the provider's own, and those that a fault asks for."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from aiohttp import web

from deltafan.devserver.provider.faults import Fault
from deltafan.errors import ValidationError


class ApiError(Exception):
    """A request that is answered with an error. `fault` is the fault that asked for it, if one did."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fault: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.fault = fault

    def body(self) -> bytes:
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
        )

    def response(self) -> web.Response:
        return web.Response(
            status=self.status, body=self.body(), content_type="application/json", headers=self.headers or None
        )


def from_validation(error: ValidationError) -> ApiError:
    return ApiError(400, str(error), param=error.fields[0].field, code="invalid_script")


def wrong_key() -> ApiError:
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


def stream_error() -> ApiError:
    """What the `error` fault puts inside a stream."""
    return ApiError(
        500,
        "The server had an error while processing your request.",
        kind="server_error",
        code="server_error",
        fault="error",
    )


def refusal(fault: Fault, model: str) -> ApiError:
    """The error that a fault of `faults.REFUSALS` answers."""
    name, arg = fault.name, fault.arg
    match name:
        case "rate_limit":
            message = f"Rate limit reached for {model}. Please try again in {arg or 0:g}s."
            headers = {"Retry-After": f"{arg or 0:g}"}
            if arg and not arg.is_integer():
                # Retry-After holds whole seconds by its standard; OpenAI's finer header is what clients read first.
                headers["retry-after-ms"] = f"{arg * 1000:g}"
            return ApiError(429, message, kind="requests", code="rate_limit_exceeded", headers=headers, fault=name)
        case "quota":
            message = "You exceeded your current quota, please check your plan and billing details."
            return ApiError(429, message, kind="insufficient_quota", code="insufficient_quota", fault=name)
        case "server_error":
            message = "The server had an error while processing your request."
            return ApiError(int(arg or 500), message, kind="server_error", fault=name)
        case "authentication":
            error = wrong_key()
            error.fault = name
            return error
        case "permission":
            message = f"You are not allowed to use the model `{model}`."
            return ApiError(403, message, code="permission_denied", fault=name)
        case "model_not_found":
            message = f"The model `{model}` does not exist or you do not have access to it."
            return ApiError(404, message, param="model", code="model_not_found", fault=name)
        case "context_length":
            message = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."
            return ApiError(400, message, param="messages", code="context_length_exceeded", fault=name)
        case _:
            return ApiError(400, "The request is not valid.", fault=name)
