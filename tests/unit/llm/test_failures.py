from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from deltafan.errors import CompletionError
from deltafan.llm.failures import MAX_MESSAGE, from_body, from_exception, redact, retry_after
from tests.unit.llm.server import KEY


def error(message: str = "m", code: Any = None, type: Any = None, **more: Any) -> dict[str, Any]:  # noqa: A002
    return {"error": {"message": message, "code": code, "type": type, **more}}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, error(type="invalid_request_error"), "bad_request"),
        (400, error("This model's maximum context length is 8192 tokens."), "context_length"),
        (400, error(code="context_length_exceeded"), "context_length"),
        (400, error("prompt is too long: 210000 tokens > 200000 maximum"), "context_length"),
        (413, error("Request too large for model `llama` on tokens per minute"), "context_length"),
        (413, error(), "bad_request"),
        (422, {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]}, "bad_request"),
        (400, error(code="content_filter"), "content_filter"),
        (400, error(code="content_policy_violation"), "content_filter"),
        (400, error("The response was filtered by Azure OpenAI's content management policy"), "content_filter"),
        (400, error("Your credit balance is too low to access the API."), "quota"),
        (400, error("meta/llama-9 is not a valid model ID: model meta/llama-9 not found"), "model_not_found"),
        (401, error(code="invalid_api_key"), "authentication"),
        (401, error(), "authentication"),
        (402, error("Insufficient Balance"), "quota"),
        (403, error(), "permission"),
        (403, error("Your input was flagged"), "content_filter"),
        (404, error(code="model_not_found"), "model_not_found"),
        (404, error("The model `x` does not exist or you do not have access to it"), "model_not_found"),
        (404, "page not found", "model_not_found"),
        (408, error(), "connection"),
        (409, error(), "server_error"),
        (429, error(code="rate_limit_exceeded"), "rate_limit"),
        (429, error(), "rate_limit"),
        (429, error("You exceeded your current quota", code="insufficient_quota"), "quota"),
        (429, [error("Quota exceeded", code=429, status="RESOURCE_EXHAUSTED")], "rate_limit"),
        (498, error(), "rate_limit"),
        (500, error(), "server_error"),
        (500, error("the model's context length could not be read"), "server_error"),
        (503, error("The server is overloaded"), "server_error"),
        (529, error(type="overloaded_error"), "server_error"),
        (418, error(), "bad_request"),
        (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model"}, "bad_request"),
        (400, None, "bad_request"),
        (500, {"error": "out of memory"}, "server_error"),
        (400, {"error": {"message": None, "code": {"nested": 1}}}, "bad_request"),
        (400, 7, "bad_request"),
    ],
)
def test_answers_are_mapped_to_codes(status: int, body: Any, code: str) -> None:
    failure = from_body(body, status=status)
    assert failure.code == code
    assert failure.code in CompletionError.CODES
    assert failure.status == status
    assert failure.message


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (error("Provider disconnected", code=502), "server_error", 502),
        (error("slow down", code="429"), "rate_limit", 429),
        (error("no tool", code="tool_use_failed", type="invalid_request_error", status_code=400), "bad_request", 400),
        (error("no tool", type="invalid_request_error"), "bad_request", None),
        (error("Overloaded", type="overloaded_error"), "server_error", None),
        (error("who knows"), "server_error", None),
        ({"message": "flat", "code": "rate_limit_exceeded"}, "rate_limit", None),
        ("plain text", "server_error", None),
        ({}, "server_error", None),
    ],
)
def test_errors_inside_a_stream_are_mapped_by_what_they_say(body: Any, code: str, status: int | None) -> None:
    failure = from_body(body)
    assert (failure.code, failure.status) == (code, status)
    assert failure.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (error("The provider's own words."), "The provider's own words."),
        ({"detail": [{"loc": ["body", "a", 0], "msg": "bad"}, {"msg": "worse"}]}, "a.0: bad; worse"),
        ({"message": {"detail": [{"loc": ["body", "n"], "msg": "no"}]}}, "n: no"),
        (
            error("Provider returned error", metadata={"raw": "upstream said no"}),
            "Provider returned error: upstream said no",
        ),
        ("<html><head><style>x{}</style></head><body><h1>502 Bad Gateway</h1></body></html>", "502 Bad Gateway"),
        ("a < b and c > d", "a < b and c > d"),
        (error("two\n  lines"), "two lines"),
        (None, "the provider answered 500"),
    ],
)
def test_messages_are_the_providers_own_words(body: Any, message: str) -> None:
    assert from_body(body, status=500).message == message


def test_messages_are_bounded() -> None:
    assert len(from_body(error("x" * 100_000), status=400).message) == MAX_MESSAGE


@pytest.mark.parametrize(
    "leak",
    [
        KEY,
        "sk-proj-abcdefghijklmnop",
        "sk-abc***************wxyz",
        "Bearer abc.def-ghi",
        "gsk_abcdefghijklmnop",
        "xai-abcdefghijklmnop",
        "hf_abcdefghijklmnop",
        "AIzaSyA0123456789abcdef",
        "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
    ],
)
def test_what_looks_like_a_key_is_taken_out(leak: str) -> None:
    shown = from_body(error(f"Incorrect API key provided: {leak}. Find yours in the console."), status=401).message
    assert leak not in shown
    assert shown.startswith("Incorrect API key provided: [redacted]")


def test_the_key_in_use_is_taken_out_whatever_it_looks_like() -> None:
    assert redact("bad key hunter2!", "hunter2!") == "bad key [redacted]"
    assert "s3cret" not in redact("see https://user:s3cret@host/v1?key=s3cret&api_key=s3cret")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    then = datetime.now(UTC) + timedelta(hours=1)
    seconds = retry_after({"retry-after": format_datetime(then, usegmt=True)})
    assert seconds == pytest.approx(3600, abs=30)


def test_an_exception_that_is_none_of_theirs_is_left_alone() -> None:
    assert from_exception(ZeroDivisionError()) is None
