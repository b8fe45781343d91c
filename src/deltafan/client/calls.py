"""From what a caller gives to what is asked: messages, parameters, limits, and options of the rings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel

from deltafan.errors import FieldError, ValidationError
from deltafan.llm.cache.options import CacheOptions
from deltafan.llm.checks import check_seconds, invalid, is_list
from deltafan.llm.request import Api, Request
from deltafan.llm.router.output import MidStream
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
            check_seconds(name, getattr(self, name))


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
    check_tools(params.get("tools"))
    options: dict[str, Any] = {name: params.pop(name) for name in OPTIONS if name in params}
    check_options(options)
    # Without streaming the first token is the last one, too: only the whole can be limited.
    first_token = limits.first_token_timeout if streaming else None
    seconds = {
        "timeout": params.pop("timeout", limits.timeout),
        "first_token_timeout": params.pop("first_token_timeout", first_token),
        "stall_timeout": params.pop("stall_timeout", limits.stall_timeout),
    }
    for name, value in seconds.items():
        check_seconds(name, value)
    return Request(
        model,
        asked,
        {**params, **(extra or {})},
        api=api,
        streaming=bool(streaming),
        options=options,
        **seconds,
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Whether or not the client has the ring that one is for.

    :raises ValidationError: names the option and the rule.
    """
    CacheOptions.checked(options)
    if options.get("check_context") not in (None, True, False):
        raise invalid("check_context", "must be true or false")
    if "mid_stream" in options and options["mid_stream"] not in get_args(MidStream):
        raise invalid("mid_stream", f"must be one of {', '.join(get_args(MidStream))}")


def check_tools(tools: Any) -> None:
    """Those that a call brings, which its sender runs.

    :raises ValidationError: they are no list of objects.
    """
    if tools is not None and not is_list(tools):
        raise invalid("tools", "must be a list of objects")
    for place, tool in enumerate(tools or ()):
        if callable(tool):
            raise invalid(f"tools[{place}]", "must be an object; functions that are to be run are given to the client")


def warming(inputs: Any, make: Callable[[Any], Request]) -> Iterable[Request]:
    """The requests of `warm_cache`: of a list at once, of a generator as they are taken.

    :raises ValidationError: names the input and the rule.
    """
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        raise invalid("inputs", "must be a list of conversations or user messages")

    def one(place: int, messages: Any) -> Request:
        try:
            return make(messages)
        except ValidationError as error:
            name = f"inputs[{place}]"
            fields = [FieldError(field.field.replace("messages", name, 1), field.message) for field in error.fields]
            raise ValidationError(fields) from None

    requests = (one(place, messages) for place, messages in enumerate(inputs))
    return list(requests) if isinstance(inputs, Sequence) else requests


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
