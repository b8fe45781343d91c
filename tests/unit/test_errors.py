"""The tree of errors: a code has one class, and the `except` clauses of the SDK's and litellm's users read on."""

from __future__ import annotations

import copy
import pickle

import pytest

from deltafan import errors
from deltafan.errors import CLASS_OF, CompletionError

JOBS_OWN = {"worker_lost", "expired", "cancelled"}


@pytest.mark.parametrize("code", CompletionError.CODES)
def test_a_code_chooses_the_class(code: str) -> None:
    error = CompletionError(code, "no", provider="groq", model="llama")
    assert type(error) is CLASS_OF.get(code, CompletionError)
    assert isinstance(error, errors.APIError) is (code not in JOBS_OWN)
    assert (error.code, error.message, str(error), error.args) == (code, "no", "no", ("no",))
    assert (error.provider, error.llm_provider, error.model) == ("groq", "groq", "llama")
    assert error.retryable is CompletionError.CODES[code]


def test_every_class_but_a_jobs_own_has_a_code() -> None:
    assert set(CompletionError.CODES) - set(CLASS_OF) == JOBS_OWN


@pytest.mark.parametrize(
    ("code", "caught_as"),
    [
        ("context_length", "BadRequestError"),
        ("content_filter", "BadRequestError"),
        ("quota", "RateLimitError"),
        ("timeout_stall", "APIConnectionError"),
        ("server_error", "InternalServerError"),
        ("malformed_stream", "APIError"),
    ],
)
def test_who_catches_the_general_catches_the_special(code: str, caught_as: str) -> None:
    with pytest.raises(getattr(errors, caught_as)):
        raise CompletionError(code, "no")


def test_the_status_is_the_providers_or_one_that_says_the_same() -> None:
    assert CompletionError("rate_limit", "no", status=498).status_code == 498
    assert [
        (code, CompletionError(code, "no").status_code)
        for code in ("authentication", "permission", "model_not_found", "timeout_total", "rate_limit", "bad_request")
    ] == [
        ("authentication", 401),
        ("permission", 403),
        ("model_not_found", 404),
        ("timeout_total", 408),
        ("rate_limit", 429),
        ("bad_request", 400),
    ]
    assert CompletionError("connection", "no").status is None


@pytest.mark.parametrize("code", CompletionError.CODES)
def test_an_error_survives_another_process(code: str) -> None:
    error = CompletionError(code, "slow down", status=429, retry_after=2.0, provider="groq", model="m")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == "slow down"


def test_a_class_may_be_raised_by_itself() -> None:
    error = errors.RateLimitError("rate_limit", "no")
    assert type(error) is errors.RateLimitError
    assert error.retryable
