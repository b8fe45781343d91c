"""From what a caller gives to what is asked: messages, parameters, limits, and options of the rings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from deltafan.errors import FieldError, ValidationError
from deltafan.llm.request import Api, Request
from deltafan.llm.toolschema import strict_schema

Messages = Sequence[Mapping[str, Any]]

OPTIONS: Final = (
    "identifier",
    "cache_response",
    "rewrite_cache",
    "regen_cache",
    "cache_errors",
    "ttl",
    "check_context",
    "mid_stream",
)
"""What a call tells the cache, the context check and the router; none of it is sent."""
_LIMITS: Final = ("timeout", "first_token_timeout", "stall_timeout")
_ELSEWHERE: Final = {
    "model": "give it to the client",
    "api_key": "give it to the client",
    "base_url": "give it to the client",
    "extra_headers": "a call cannot set headers",
    "extra_query": "a call cannot set a query",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of a call, in seconds; `None` is no limit. See `Request`."""

    timeout: float | None
    first_token_timeout: float | None
    stall_timeout: float | None

    def __post_init__(self) -> None:
        for name in _LIMITS:
            _check_seconds(name, getattr(self, name))


def request_of(
    model: str, messages: Messages | str | None, given: Any, params: Mapping[str, Any], *, api: Api, limits: Limits
) -> Request:
    """The request of one call.

    :param given: the argument `input`.
    :raises ValidationError: names what is wrong.
    """
    params = dict(params)
    errors = [
        FieldError(name, f"is not a parameter of a call: {rule}") for name, rule in _ELSEWHERE.items() if name in params
    ]
    if errors:
        raise ValidationError(errors)
    streaming = params.pop("stream", True)
    if streaming not in (True, False, None):
        raise ValidationError([FieldError("stream", "must be true or false")])
    extra = params.pop("extra_body", None)
    if not isinstance(extra, Mapping | None):
        raise ValidationError([FieldError("extra_body", "must be an object")])
    if (messages is None) == (given is None):
        raise ValidationError([FieldError("messages", "give either `messages` or `input`")])
    if api == "responses" and given is not None and not isinstance(given, str):
        params["input"], asked = given, []
    else:
        asked = messages_of(given if messages is None else messages, "input" if messages is None else "messages")
    if isinstance(params.get("response_format"), type):
        params["response_format"] = _format(params["response_format"])
    options: dict[str, Any] = {name: params.pop(name) for name in OPTIONS if name in params}
    # Without streaming the first token is the last one, too: only the whole can be limited.
    first_token = limits.first_token_timeout if streaming else None
    seconds = {
        "timeout": params.pop("timeout", limits.timeout),
        "first_token_timeout": params.pop("first_token_timeout", first_token),
        "stall_timeout": params.pop("stall_timeout", limits.stall_timeout),
    }
    for name, value in seconds.items():
        _check_seconds(name, value)
    return Request(
        model,
        asked,
        {**params, **(extra or {})},
        api=api,
        streaming=bool(streaming),
        options=options,
        **seconds,
    )


def _format(model: type) -> dict[str, Any]:
    """A pydantic model as what OpenAI's structured outputs take.

    :raises ValidationError: it is none, or they cannot say it.
    """
    if not issubclass(model, BaseModel):
        raise ValidationError([FieldError("response_format", "must be an object, or a pydantic model")])
    try:
        schema = strict_schema(model.model_json_schema())
    except ValueError as error:
        raise ValidationError([FieldError("response_format", str(error))]) from None
    return {"type": "json_schema", "json_schema": {"name": model.__name__, "schema": schema, "strict": True}}


def messages_of(given: Any, field: str = "messages") -> list[Mapping[str, Any]]:
    """A conversation: one message of the user, or a list. The SDK's own message objects may be in it.

    :raises ValidationError: it is neither.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise ValidationError([FieldError(field, "must be a string or a list of messages")])
    if not given:
        raise ValidationError([FieldError(field, "must hold at least one message")])
    return [_message(message, f"{field}[{place}]") for place, message in enumerate(given)]


def _message(message: Any, field: str) -> Mapping[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise ValidationError([FieldError(field, "must be an object with `role` and `content`")])
    return message


def _check_seconds(field: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < float("inf")):
        raise ValidationError([FieldError(field, "must be a number of seconds above 0, or None")])
