"""The job spec: what is taken, what is refused, and how a refusal reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.errors import ValidationError
from deltafan.job import JobSpec, parse_spec, partition_of
from deltafan.settings import JobLimits
from tests.unit.strategies import json_values

BASE: dict[str, Any] = {"model": "m", "prompt": "x"}


def user(content: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]}


VALID: list[dict[str, Any]] = [
    BASE,
    {"v": 1, **BASE},
    {**BASE, "model": "openai/gpt-5"},
    {**BASE, "model": "vllm/org/model:8b@q4"},
    {**BASE, "model": "Ünïcode-模型"},
    {**BASE, "prompt": "a\x00b\u2028c 🌊"},
    user("hi"),
    user(""),
    user([]),
    user([{"type": "text", "text": "hi"}]),
    user([{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]),
    user([{"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}]),
    user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
    user([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
    {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "assistant", "content": "So", "prefix": True},
        ],
    },
    {
        **BASE,
        "params": {"temperature": 0, "stop": ["a"], "vendor": {"x": [1]}, "max_tokens": 5, "prompt_cache_key": "k"},
    },
    {**BASE, "tools": ["a", "b"], "sinks": ["pusher", "my-sink_2"]},
    {**BASE, "fallbacks": ["groq/llama-3.3-70b", "gpt-5"]},
    {**BASE, "channel": "private-user=7@a,b.c;d:e/f#1"},
    {
        **BASE,
        "sinks": ["pusher"],
        "pusher_channels": ["news", "private-a@b", "presence-x", "private-encrypted-=;,." + "n" * 140],
    },
    {**BASE, "sinks": ["pusher"], "channel": "a:b", "pusher_channels": ["x"], "subject": "user 7, Zoë"},
    {**BASE, "channel": "my-deltafan:x"},
    {**BASE, "metadata": {"a": [1, {"b": None}]}, "idempotency_key": "ß" * 256},
    {**BASE, "queue": "a" * 64, "priority": "high"},
    {**BASE, "delay": 0, "expires_in": 0.001, "timeout": 86_400},
    {**BASE, "run_at": "2030-01-31T09:00:00+02:00"},
    {**BASE, "first_token_timeout": 1, "stall_timeout": 1.5, "max_attempts": 100, "on_takeover": "continue"},
    {**BASE, "cancel_if_abandoned": 1, "retention": 1},
]


@pytest.mark.parametrize("value", VALID, ids=lambda value: str(value)[:60])
def test_a_spec_is_taken_and_stored_as_it_was_given(value: dict[str, Any]) -> None:
    spec = parse_spec(value)
    assert parse_spec(orjson.dumps(value)) == spec
    assert parse_spec(orjson.dumps(value).decode()) == spec
    assert parse_spec(spec.to_json()) == spec
    assert JobSpec.model_validate_json(spec.to_json()) == spec
    stored = orjson.loads(spec.to_json())
    assert stored.keys() == value.keys() | {"v"}, "defaults stay the worker's"
    same = {name: stored[name] for name in value if name != "run_at"}
    assert same == {name: value[name] for name in same}


INVALID: list[tuple[dict[str, Any], str]] = [
    ({**BASE, "pusher_channels": ["a"]}, "pusher_channels: needs the sink `pusher`"),
    ({**BASE, "pusher_channels": ["a:b"]}, "pusher_channels: 'a:b' may hold letters, digits and _ - = @ , . ; only"),
    ({**BASE, "pusher_channels": ["a" * 165]}, f"pusher_channels: '{'a' * 164}' must have at most 164 characters"),
    ({**BASE, "pusher_channels": ["private-"]}, "pusher_channels: 'private-' is a prefix only; a name must follow it"),
    ({**BASE, "pusher_channels": ["private-job-7"]}, "pusher_channels: 'private-job-7' is reserved"),
    ({**BASE, "pusher_channels": ["a"] * 2}, "pusher_channels: names something twice"),
    ({**BASE, "sinks": ["pusher"], "channel": "a:b"}, "channel: as a Pusher channel it may hold letters"),
    ({**BASE, "subject": "a\nb"}, "subject: must not hold control characters"),
    ({}, "model: is required"),
    ({"model": "m"}, "give either `prompt` or `messages`"),
    ({**BASE, "messages": [{"role": "user", "content": "x"}]}, "give either `prompt` or `messages`"),
    ({**BASE, "colour": "red"}, "colour: is not a field of a job"),
    ({**BASE, "base_url": "http://x"}, "base_url: is not a field of a job"),
    ({**BASE, "stream": False}, "stream: is not a field of a job"),
    ({**BASE, "v": 2}, "v: must be 1"),
    ({**BASE, "model": ""}, "model: must not be empty"),
    ({**BASE, "model": 5}, "model: must be a string"),
    ({**BASE, "model": None}, "model: must be a string"),
    ({**BASE, "model": "a b"}, "model: must not hold spaces or control characters"),
    ({**BASE, "model": "a\n"}, "model: must not hold spaces or control characters"),
    ({**BASE, "model": "a\x00"}, "model: must not hold spaces or control characters"),
    ({**BASE, "model": "x" * 201}, "model: must have at most 200 characters"),
    ({**BASE, "model": "\ud800"}, "model: must be text: it holds half of a surrogate pair, which UTF-8 cannot carry"),
    ({**BASE, "prompt": ""}, "prompt: must not be empty"),
    ({**BASE, "prompt": 5}, "prompt: must be a string"),
    ({**BASE, "prompt": "\udfff"}, "prompt: must be text: it holds half of a surrogate pair, which UTF-8 cannot carry"),
    ({"model": "m", "messages": []}, "messages: must not be empty"),
    ({"model": "m", "messages": "hi"}, "messages: must be a list"),
    ({"model": "m", "messages": ["hi"]}, "messages[0]: must be an object"),
    ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content: is required for role user"),
    ({"model": "m", "messages": [{"role": "tool"}]}, "messages[0].content: is required for role tool"),
    ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role: is required"),
    (
        {"model": "m", "messages": [{"role": "elf", "content": "x"}]},
        "messages[0].role: must be 'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
    ),
    (user(5), "messages[0].content: must be a string or a list of parts"),
    (user({"type": "text"}), "messages[0].content: must be a string or a list of parts"),
    (user([5]), "messages[0].content[0]: must be an object"),
    (user([{"text": "x"}]), "messages[0].content[0].type: must be text, image_url, input_audio, file or refusal"),
    (user([{"type": "text", "text": "x"}, {"type": "hologram"}]),
     "messages[0].content[1].type: must be text, image_url, input_audio, file or refusal"),
    (user([{"type": "text"}]), "messages[0].content[0].text: is required"),
    (user([{"type": "text", "text": 3}]), "messages[0].content[0].text: must be a string"),
    (user([{"type": "image_url", "image_url": "x"}]), "messages[0].content[0].image_url: must be an object"),
    (user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
     "messages[0].content[0].image_url.url: must be an http(s) URL or a data:image/ URL"),
    ({"model": "m", "messages": [{"role": "user", "content": "x"}] * 10_001},
     "messages: must have at most 10000 entries"),
    ({**BASE, "params": []}, "params: must be an object"),
    ({**BASE, "params": {1: 2}}, "params: must have strings as names"),
    ({**BASE, "params": {"a": "\ud800"}}, "params: must be JSON: "),
    ({**BASE, "params": {"a": 2**70}}, "params: must be JSON: "),
    ({**BASE, "metadata": {"a": object()}}, "metadata: must be JSON: "),
    ({**BASE, "metadata": "x"}, "metadata: must be an object"),
    ({**BASE, "fallbacks": "gpt-5"}, "fallbacks: must be a list"),
    ({**BASE, "fallbacks": [""]}, "fallbacks[0]: must not be empty"),
    ({**BASE, "fallbacks": ["gpt 5"]}, "fallbacks[0]: must not hold spaces or control characters"),
    ({**BASE, "fallbacks": ["a", "a"]}, "fallbacks: names something twice"),
    ({**BASE, "fallbacks": [str(n) for n in range(9)]}, "fallbacks: must have at most 8 entries"),
    ({**BASE, "tools": "f"}, "tools: must be a list"),
    ({**BASE, "tools": [5]}, "tools[0]: must be a string"),
    ({**BASE, "tools": ["f", "f"]}, "tools: names something twice"),
    ({**BASE, "tools": [str(n) for n in range(129)]}, "tools: must have at most 128 entries"),
    ({**BASE, "sinks": ["ok", "Pusher"]},
     "sinks[1]: may hold lower case letters, digits, - and _, at most 32, the first a letter"),
    ({**BASE, "sinks": ["a", "a"]}, "sinks: names something twice"),
    ({**BASE, "sinks": list("abcdefghi")}, "sinks: must have at most 8 entries"),
    ({**BASE, "idempotency_key": ""}, "idempotency_key: must not be empty"),
    ({**BASE, "idempotency_key": "x" * 257}, "idempotency_key: must have at most 256 characters"),
    ({**BASE, "queue": "A"}, "queue: may hold lower case letters, digits, - and _"),
    ({**BASE, "queue": "a:b"}, "queue: may hold lower case letters"),
    ({**BASE, "queue": "a\n"}, "queue: may hold lower case letters"),
    ({**BASE, "priority": "urgent"}, "priority: must be 'high', 'normal' or 'low'"),
    ({**BASE, "priority": "takeover"}, "priority: must be 'high', 'normal' or 'low'"),
    ({**BASE, "delay": -1}, "delay: must be at least 0"),
    ({**BASE, "delay": "soon"}, "delay: must be a number"),
    ({**BASE, "delay": float("nan")}, "delay: must be a finite number"),
    ({**BASE, "delay": 1e12}, "delay: must be at most 31622400"),
    ({**BASE, "run_at": "tomorrow"}, "run_at: must be a time with a UTC offset, such as 2030-01-31T09:00:00Z"),
    ({**BASE, "run_at": "2030-01-31T09:00:00"}, "run_at: must have a UTC offset, such as 2030-01-31T09:00:00Z"),
    ({**BASE, "delay": 1, "run_at": "2030-01-31T09:00:00Z"}, "give either `delay` or `run_at`"),
    ({**BASE, "expires_in": 0}, "expires_in: must be more than 0"),
    ({**BASE, "timeout": 86_401}, "timeout: must be at most 86400"),
    ({**BASE, "first_token_timeout": 0}, "first_token_timeout: must be more than 0"),
    ({**BASE, "stall_timeout": float("inf")}, "stall_timeout: must be a finite number"),
    ({**BASE, "max_attempts": 0}, "max_attempts: must be at least 1"),
    ({**BASE, "max_attempts": 1.5}, "max_attempts: must be a whole number"),
    ({**BASE, "max_attempts": "many"}, "max_attempts: must be a whole number"),
    ({**BASE, "on_takeover": "panic"}, "on_takeover: must be 'restart', 'continue' or 'fail'"),
    ({**BASE, "cancel_if_abandoned": 0.5}, "cancel_if_abandoned: must be at least 1"),
    ({**BASE, "retention": 0}, "retention: must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), INVALID, ids=[message[:50] for _, message in INVALID])
def test_a_refusal_names_the_field_and_the_rule(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_spec(value)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "name",
    ["stream", "stream_options", "model", "messages", "timeout", "base_url", "api_base", "api_version",
     "default_headers", "extra_headers", "extra_query", "extra_body", "api_key", "apikey", "openai_api_key",
     "Authorization", "password", "client_secret", "access_token"],
)  # fmt: skip
def test_what_the_worker_decides_is_no_parameter(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"^params: {name} is not allowed: "):
        parse_spec({**BASE, "params": {name: "x"}})


@pytest.mark.parametrize(
    ("channel", "rule"),
    [
        ("", "must not be empty"),
        ("x" * 165, "at most 164 characters"),
        ("a b", "may hold letters"),
        ("a\n", "may hold letters"),
        ("a*", "may hold letters"),
        ("ä", "may hold letters"),
        ("deltafan:{0}:live:0-x", "may hold letters"),
        ("deltafan:0:control:", "is reserved"),
        ("DeltaFan:x", "is reserved"),
        ("__keyspace@0__:x", "is reserved"),
        ("__redis__:invalidate", "is reserved"),
        ("__sentinel__:hello", "is reserved"),
    ],
)
def test_a_channel_cannot_be_one_of_ours_or_of_redis(channel: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rf"^channel: .*{rule}"):
        parse_spec({**BASE, "channel": channel})


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_spec({"model": "", "prompt": 5, "queue": "A", "colour": 1, "delay": -1})
    assert {error.field for error in refused.value.fields} == {"model", "prompt", "queue", "colour", "delay"}


def test_very_many_findings_are_cut() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_spec({**BASE, **{f"x{n}": 1 for n in range(500)}})
    assert len(refused.value.fields) == 20


def test_no_refusal_repeats_what_was_sent() -> None:
    secret = "sk-very-secret"
    for value in ({**BASE, "params": {"api_key": secret}}, {**BASE, "max_attempts": secret}, user([{"type": secret}])):
        with pytest.raises(ValidationError) as refused:
            parse_spec(value)
        assert secret not in str(refused.value)


def test_size_is_bounded_before_and_after_parsing() -> None:
    limits = JobLimits(max_bytes=1024)
    fits = 1024 - len(parse_spec({**BASE, "prompt": "x"}).to_json()) + 1
    parse_spec({**BASE, "prompt": "x" * fits}, limits)
    for value in ({**BASE, "prompt": "x" * (fits + 1)}, {**BASE, "prompt": "ä" * (fits // 2 + 1)}):
        for raw in (value, orjson.dumps(value)):
            with pytest.raises(ValidationError, match=r"the job is 1,0\d\d bytes; at most 1,024 are taken"):
                parse_spec(raw, limits)
    with pytest.raises(ValidationError, match="at most 1,024"):
        parse_spec("ä" * 600, limits)
    with pytest.raises(ValidationError, match="at most 1,024"):
        parse_spec(b" " * 1025, limits)


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    limits = JobLimits(max_depth=8)
    parse_spec({**BASE, "metadata": {"a": nested(6)}}, limits)
    with pytest.raises(ValidationError, match="is nested deeper than 8 levels"):
        parse_spec({**BASE, "metadata": {"a": nested(7)}}, limits)
    with pytest.raises(ValidationError, match="is nested deeper than 32 levels"):
        parse_spec({**BASE, "metadata": {"a": nested(100_000)}})
    with pytest.raises(ValidationError, match=r"not JSON|nested deeper"):
        parse_spec(b'{"model":"m","prompt":"x","metadata":{"a":' + b"[" * 9000 + b"]" * 9000 + b"}}")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"null", b"\xff", '"\ud800"', "nonsense"])
def test_what_is_no_json_object_is_refused(raw: bytes | str) -> None:
    with pytest.raises(ValidationError, match="JSON"):
        parse_spec(raw)


@given(st.dictionaries(st.sampled_from(list(JobSpec.model_fields)), json_values, max_size=8))
def test_any_object_is_a_spec_or_refused(value: dict[str, Any]) -> None:
    try:
        spec = parse_spec(value)
    except ValidationError as error:
        found = error.fields
    else:
        assert parse_spec(spec.to_json()) == spec
        return
    assert found
    assert all(field.message for field in found)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_metadata_and_params_survive_storing(value: dict[str, Any]) -> None:
    try:
        spec = parse_spec({**BASE, "metadata": value, "params": {f"x{k}": v for k, v in value.items()}})
    except ValidationError as error:
        assert "must be JSON" in str(error)  # a lone surrogate  # noqa: PT017
    else:
        assert parse_spec(spec.to_json()).metadata == value


def test_a_prompt_is_one_user_message_and_messages_pass_as_they_are() -> None:
    assert parse_spec(BASE).chat() == [{"role": "user", "content": "x"}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}], "name": "n"}]
    assert parse_spec({"model": "m", "messages": messages}).chat() == messages


def test_a_time_of_day_keeps_its_moment() -> None:
    spec = parse_spec({**BASE, "run_at": "2030-01-31T11:00:00+02:00"})
    assert parse_spec(spec.to_json()).run_at == datetime(2030, 1, 31, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "job_id", ["", "x", "0", "0-", "-x", "12345-x", "0-a b", "0-" + "x" * 151, "0-x\n", "٠-x", "0-{1}"]
)
def test_what_is_no_job_id_is_refused(job_id: str) -> None:
    with pytest.raises(ValidationError, match=r"^job: must be a job id"):
        partition_of(job_id)


def test_a_job_id_carries_its_partition() -> None:
    assert (partition_of("0-x"), partition_of("1023-default-normal-1-0")) == (0, 1023)
