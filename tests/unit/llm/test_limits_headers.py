from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.llm.limits import Allowance, Observation, learn
from deltafan.llm.limits.headers import MAX_PAUSE, parse_reset, paused

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def told(headers: dict[str, str], status: int = 200) -> Observation:
    return learn(headers, status, clock=lambda: NOW)


def test_openai_and_groq() -> None:
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert told(headers) == Observation(Allowance(160_000, 159_976, 360.0), Allowance(5000, 4999, 0.012))


def test_azure_which_tells_what_is_left_only() -> None:
    headers = {"x-ratelimit-remaining-requests": "119", "x-ratelimit-remaining-tokens": "119984"}
    assert told(headers) == Observation(Allowance(remaining=119_984), Allowance(remaining=119))


def test_anthropic() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-01-02T03:04:06Z",
        "anthropic-ratelimit-tokens-limit": "50000",
        "anthropic-ratelimit-tokens-remaining": "49000",
        "anthropic-ratelimit-tokens-reset": "2026-01-02T03:05:05Z",
    }
    assert told(headers) == Observation(Allowance(50_000, 49_000, 60.0), Allowance(50, 49, 1.0))


def test_cerebras_by_the_minute_and_not_by_the_day() -> None:
    headers = {
        "x-ratelimit-limit-requests-day": "14400",
        "x-ratelimit-limit-tokens-minute": "60000",
        "x-ratelimit-remaining-tokens-minute": "59000",
        "x-ratelimit-reset-tokens-minute": "11.38",
    }
    assert told(headers) == Observation(Allowance(60_000, 59_000, 11.38))


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_retry_after_pauses(status: int) -> None:
    assert told({"retry-after": "7"}, status).pause == 7
    assert told({"retry-after-ms": "250"}, status).pause == 0.25
    assert paused(status, 7) == Observation(pause=7)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_retry_after_of_another_status_is_about_that_request(status: int) -> None:
    assert not told({"retry-after": "7"}, status)
    assert not paused(status, 7)


def test_a_pause_is_bounded() -> None:
    assert told({"retry-after": "864000"}, 429).pause == MAX_PAUSE
    assert paused(429, 864_000.0).pause == MAX_PAUSE


def test_nothing_told_is_nothing() -> None:
    assert not told({})
    assert not told({"x-request-id": "1"})
    assert not paused(None, 5)
    assert not paused(429, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1s", 1),
        ("2m59.56s", 179.56),
        ("1h30m0s", 5400),
        ("1d2h", 93_600),
        ("1m500ms", 60.5),
        ("0s", 0),
        ("0", 0),
        ("11.38", 11.38),
        ("-3", 0),
        (f"{NOW + 30:.0f}", 30),
        (f"{(NOW + 30) * 1000:.0f}", 30),
        ("2026-01-02T03:04:35Z", 30),
        ("2026-01-02T04:04:35+01:00", 30),
        ("2026-01-02T03:04:35", 30),
        ("2026-01-01T00:00:00Z", 0),
        ("", None),
        ("soon", None),
        ("s", None),
        ("5 minutes", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_reset_in_every_way_of_saying_it(text: str, seconds: float | None) -> None:
    assert parse_reset(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["", "-1", "many", "1e3", "1.5", "9" * 30, "²", "0x10"])
def test_a_count_that_makes_no_sense_is_not_told(value: str) -> None:
    assert not told({"x-ratelimit-limit-tokens": value, "x-ratelimit-remaining-requests": value})


def test_a_limit_of_zero_is_none() -> None:
    assert not told({"x-ratelimit-limit-tokens": "0"})
    assert told({"x-ratelimit-remaining-tokens": "0"}).tokens == Allowance(remaining=0)


@given(st.text(max_size=40))
def test_whatever_is_sent_is_read_or_left(value: str) -> None:
    names = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("tokens", "requests")]
    observation = told(dict.fromkeys([*names, "retry-after", "retry-after-ms"], value), 429)
    for allowance in (observation.tokens, observation.requests):
        assert allowance.reset is None or 0 <= allowance.reset < float("inf")
    assert 0 <= observation.pause <= MAX_PAUSE
