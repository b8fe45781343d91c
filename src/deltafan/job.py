"""The job spec: what a web app enqueues. Versioned, validated; unknown fields are rejected by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic import ValidationError as PydanticError
from pydantic_core import PydanticCustomError, PydanticSerializationError

from deltafan.channels import CHANNEL_MAX, JOB_CHANNEL, PUSHER, channel_problem, job_channel
from deltafan.errors import FieldError, ValidationError
from deltafan.job_errors import BELOW, MODEL_NAME, SINK_NAME, field_errors
from deltafan.settings import QUEUE_NAME, JobLimits

SPEC_VERSION: Final = 1
JobState = Literal["delayed", "queued", "running", "done", "failed", "cancelled", "expired"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled", "expired"})
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
DEFAULT_PRIORITY: Final[Priority] = "normal"
OnTakeover = Literal["restart", "continue", "fail"]

JOB_ID: Final = re.compile(r"([0-9]{1,4})-[A-Za-z0-9_-]{1,150}")
_NOT_JSON = (TypeError, UnicodeEncodeError, PydanticSerializationError)
_CHANNEL = re.compile(r"[A-Za-z0-9_\-=@,.;:/#]+")
_RESERVED_CHANNELS = ("deltafan:", "__key", "__redis", "__sentinel")
DAY: Final = 86_400.0

# The worker decides these; a job that could set them could reach another host or read another's keys.
_REFUSED_PARAMS = {
    "stream": "the worker always streams",
    "stream_options": "the worker asks for usage itself",
    "model": "belongs in the job's `model`",
    "messages": "belongs in the job's `messages`",
    "timeout": "belongs in the job's `timeout`",
    "base_url": "the worker's settings choose the provider",
    "api_base": "the worker's settings choose the provider",
    "api_version": "the worker's settings choose the provider",
    "default_headers": "the worker's settings choose the provider",
    "extra_headers": "headers are not a job's to set",
    "extra_query": "query parameters are not a job's to set",
    "extra_body": "give the parameter itself",
}
_KEY_LIKE = re.compile(r"(^|_)(api_?key|authorization|password|secret|access_token)$", re.IGNORECASE)

Seconds = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Open(BaseModel):
    # Messages pass to the provider as they are: what OpenAI-compatible providers add (cache_control, prefix) is theirs.
    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)


class TextPart(_Open):
    type: Literal["text"]
    text: str


class ImageUrl(_Open):
    url: str

    @field_validator("url")
    @classmethod
    def _scheme(cls, url: str) -> str:
        if not url.startswith(("https://", "http://", "data:image/")):
            raise ValueError("must be an http(s) URL or a data:image/ URL")
        return url


class ImagePart(_Open):
    type: Literal["image_url"]
    image_url: ImageUrl


class OtherPart(_Open):
    type: Literal["input_audio", "file", "refusal"]


Part = Annotated[TextPart | ImagePart | OtherPart, Field(discriminator="type")]


def _content_kind(value: Any) -> str | None:
    return "string" if isinstance(value, str) else "parts" if isinstance(value, list | tuple) else None


# `fail_fast`: of a message the first wrong part or call is told. Half a million findings would hold up everybody else.
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[Part], Field(fail_fast=True), Tag("parts")],
    Discriminator(
        _content_kind, custom_error_type="content", custom_error_message="must be a string or a list of parts"
    ),
]


class Message(_Open):
    """One chat message in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            context = {BELOW: "content", "role": self.role}
            raise PydanticCustomError(BELOW, "is required for role {role}", context)
        return self


class JobSpec(_Strict):
    """A prompt job. Durations are in seconds."""

    v: Literal[1] = SPEC_VERSION
    model: str = Field(min_length=1, max_length=200, pattern=MODEL_NAME)
    """`provider/model`, or a bare name for the worker's default provider."""
    fallbacks: list[Annotated[str, Field(min_length=1, max_length=200, pattern=MODEL_NAME)]] = Field(
        default_factory=list, max_length=8
    )
    """Models to ask in this order when `model` fails; `on_takeover` says what becomes of text already streamed."""
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=10_000)
    """The conversation, in OpenAI's shape. Give this or `prompt`."""
    prompt: str | None = Field(default=None, min_length=1)
    """Short for one user message."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Any chat-completions parameter: temperature, max_tokens, tools, response_format, seed, stop, …"""
    tools: list[str] = Field(default_factory=list, max_length=128)
    """Names of tools that the worker registered and runs itself."""
    channel: str | None = Field(default=None, min_length=1, max_length=CHANNEL_MAX)
    """A Redis channel of yours to which the events are published as well."""
    sinks: list[Annotated[str, Field(pattern=SINK_NAME)]] = Field(default_factory=list, max_length=8)
    """Further sinks of the worker, by name: `pusher`, and the operator's own. The log and its channel always serve."""
    pusher_channels: list[str] = Field(default_factory=list, max_length=8)
    """Pusher channels for the sink `pusher`; without them its `channel`, or else one of its own, `private-job-<id>`."""
    subject: str | None = Field(default=None, min_length=1, max_length=200)
    """The user of yours whose job it is. A stream token may be given for all jobs of a subject."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Yours; comes back in every `meta` event and in the job's status."""
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=256)
    """A second enqueue with the same key and spec gives back the first job."""
    queue: str = Field(default="default", pattern=QUEUE_NAME)
    priority: Priority = DEFAULT_PRIORITY
    delay: Seconds | None = Field(default=None, ge=0, le=366 * DAY)
    """Wait this long before the job may start."""
    run_at: datetime | None = None
    """Wait until this time (with a UTC offset)."""
    expires_in: Seconds | None = Field(default=None, gt=0, le=366 * DAY)
    """A job that has not started by then ends as `expired`."""
    timeout: Seconds | None = Field(default=None, gt=0, le=DAY)
    """The longest an attempt may run."""
    first_token_timeout: Seconds | None = Field(default=None, gt=0, le=DAY)
    stall_timeout: Seconds | None = Field(default=None, gt=0, le=DAY)
    """The longest silence of the provider after the first token."""
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    """Runs of the job that may fail before it does."""
    on_takeover: OnTakeover = "restart"
    """What a new attempt, or a fallback, does with text already streamed: begin anew, go on from it where the model
    can, or fail."""
    cancel_if_abandoned: Seconds | None = Field(default=None, ge=1, le=DAY)
    """Cancel a running job that nobody has followed for this long."""
    retention: Seconds | None = Field(default=None, ge=1, le=366 * DAY)
    """How long the events and the record are kept after the end."""

    @field_validator("params")
    @classmethod
    def _params(cls, params: dict[str, Any]) -> dict[str, Any]:
        for key in params:
            if key in _REFUSED_PARAMS:
                raise ValueError(f"{key} is not allowed: {_REFUSED_PARAMS[key]}")
            if _KEY_LIKE.search(key):
                raise ValueError(f"{key} is not allowed: keys belong in the worker's settings")
        return params

    @field_validator("channel")
    @classmethod
    def _own_channel(cls, channel: str | None) -> str | None:
        if channel is None:
            return None
        if not _CHANNEL.fullmatch(channel):
            raise ValueError("may hold letters, digits and _ - = @ , . ; : / # only")
        if channel.lower().startswith(_RESERVED_CHANNELS):
            raise ValueError("is reserved: it begins like a channel of deltafan or of Redis")
        return channel

    @field_validator("pusher_channels")
    @classmethod
    def _channel_names(cls, names: list[str]) -> list[str]:
        for name in names:
            problem = _pusher_problem(name)
            if problem is not None:
                raise ValueError(f"{name[:CHANNEL_MAX]!r} {problem}")
        return names

    @field_validator("subject")
    @classmethod
    def _printable(cls, subject: str | None) -> str | None:
        if subject is not None and not subject.isprintable():
            raise ValueError("must not hold control characters")
        return subject

    @field_validator("fallbacks", "sinks", "tools", "pusher_channels")
    @classmethod
    def _unique(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("names something twice")
        return names

    @field_validator("run_at")
    @classmethod
    def _aware(cls, run_at: datetime | None) -> datetime | None:
        if run_at is not None and run_at.tzinfo is None:
            raise ValueError("must have a UTC offset, such as 2030-01-31T09:00:00Z")
        return run_at

    @model_validator(mode="after")
    def _one_of(self) -> JobSpec:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` or `messages`")
        if self.delay is not None and self.run_at is not None:
            raise ValueError("give either `delay` or `run_at`")
        if self.pusher_channels and PUSHER not in self.sinks:
            raise PydanticCustomError(BELOW, 'needs the sink `pusher`: sinks=["pusher"]', {BELOW: "pusher_channels"})
        if PUSHER in self.sinks and self.channel is not None and not self.pusher_channels:
            problem = _pusher_problem(self.channel)
            if problem is not None:
                message = "as a Pusher channel it {problem}; or give `pusher_channels`"
                raise PydanticCustomError(BELOW, message, {BELOW: "channel", "problem": problem})
        return self

    def chat(self) -> list[dict[str, Any]]:
        """The messages to send."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt}]
        return [m.model_dump(mode="json", exclude_unset=True) for m in self.messages]

    def channels_on_pusher(self, job_id: str) -> tuple[str, ...]:
        """Those it names, else its `channel`, else one of its own; none without the Pusher sink."""
        if PUSHER not in self.sinks:
            return ()
        return tuple(self.pusher_channels) or (job_channel(job_id) if self.channel is None else self.channel,)

    def to_json(self) -> bytes:
        """The spec as it is stored: only what was given, so that defaults stay the worker's."""
        return orjson.dumps({"v": SPEC_VERSION} | self.model_dump(mode="json", exclude_unset=True))


def parse_spec(raw: Mapping[str, Any] | bytes | str, limits: JobLimits | None = None) -> JobSpec:
    """Validate a spec, from JSON or from an object.

    :raises ValidationError: naming every field that is wrong, and its rule.
    """
    limits = limits or JobLimits()
    if isinstance(raw, bytes | str):
        raw = _load(raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw, limits)
    _check_depth(raw, limits.max_depth)
    try:
        spec = JobSpec.model_validate(raw)
    except PydanticError as error:
        raise ValidationError(field_errors(error)) from None
    try:
        size = len(spec.to_json())
    except _NOT_JSON:
        raise ValidationError(_not_json(spec)) from None
    _check_size(size, limits)
    return spec


def _pusher_problem(name: str) -> str | None:
    if name.startswith(JOB_CHANNEL):
        return f"is reserved: {JOB_CHANNEL} is for channels that jobs have by themselves"
    return channel_problem(name)


def _not_json(spec: JobSpec) -> list[FieldError]:
    """The fields that hold what JSON cannot: pydantic lets anything pass inside of `params`, say."""
    found: list[FieldError] = []
    for name in JobSpec.model_fields:
        try:
            orjson.dumps(spec.model_dump(mode="json", include={name}, exclude_unset=True))
        except _NOT_JSON as error:
            found.append(FieldError(name, f"must be JSON: {error}"))
    return found


def _check_size(size: int, limits: JobLimits) -> None:
    if size > limits.max_bytes:
        raise ValidationError([FieldError("", f"the job is {size:,} bytes; at most {limits.max_bytes:,} are taken")])


def _load(raw: bytes, limits: JobLimits) -> Mapping[str, Any]:
    _check_size(len(raw), limits)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ValidationError([FieldError("", f"not JSON: {error}")]) from None
    if not isinstance(value, dict):
        raise ValidationError([FieldError("", "must be a JSON object")])
    return value


def _check_depth(value: object, limit: int) -> None:
    """Walk level by level: a recursive walk would itself fall to a deep value."""
    level: list[object] = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list | tuple)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return
    raise ValidationError([FieldError("", f"is nested deeper than {limit} levels")])


def partition_of(job_id: str) -> int:
    """The partition that a job id carries.

    :raises ValidationError: when it is not a job id.
    """
    match = JOB_ID.fullmatch(job_id)
    if match is None:
        raise ValidationError([FieldError("job", "must be a job id, <partition>-<name>, as enqueue gave it back")])
    return int(match[1])
