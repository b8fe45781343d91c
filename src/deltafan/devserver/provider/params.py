"""Parameters of a request's body, each read with its rule."""

from __future__ import annotations

from typing import Any

import orjson

from deltafan.devserver.provider.api_errors import ApiError


def json_object(body: bytes) -> dict[str, Any]:
    """:raises ApiError: 400."""
    try:
        params = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return params


def model_of(params: dict[str, Any]) -> str:
    model = params.get("model")
    if not isinstance(model, str) or not model or len(model) > 256:
        raise wrong("model", "must be a string of 1 to 256 characters")
    return model


def typed(params: dict[str, Any], name: str, kind: type, rule: str, prefix: str = "") -> Any:
    value = params.get(name)
    if value is not None and not isinstance(value, kind):
        raise wrong(prefix + name, f"must be {rule}")
    return value


def whole(params: dict[str, Any], name: str, minimum: int, maximum: int | None = None) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    bounds = f"{minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        raise wrong(name, f"must be a whole number, {bounds}")
    return int(value)


def wrong(param: str, rule: str) -> ApiError:
    return ApiError(400, f"{param}: {rule}", param=param)
