"""When a deployment is left alone, when it is tried again, and which of several is asked. Time is given."""

from __future__ import annotations

from collections import Counter

import pytest

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm.router.deployment import Deployment, Member
from deltafan.llm.router.health import HALF_LIFE, MAX_COOLDOWN, Health, Rules, Trial
from deltafan.llm.router.strategy import choose

RULES = Rules(failures=3, ratio=0.5, cooldown=30.0)


def fail(health: Health, now: float, code: str = "server_error", retry_after: float | None = None) -> None:
    health.failed(now, health.begin(now), CompletionError(code, "no", retry_after=retry_after))


def succeed(health: Health, now: float) -> None:
    health.succeeded(now, health.begin(now))


def test_it_cools_down_after_some_failures_and_not_before() -> None:
    health = Health(RULES)
    for now in (1.0, 2.0):
        fail(health, now)
        assert health.available(now)
    fail(health, 3.0)
    assert not health.available(32.9)
    assert health.available(33.0)


def test_failures_that_are_few_among_many_requests_do_not_count() -> None:
    health = Health(RULES)
    for _ in range(4):
        succeed(health, 1.0)
    for _ in range(3):
        fail(health, 2.0)
    assert health.available(2.0)
    fail(health, 2.0)
    assert not health.available(2.0)


def test_failures_of_more_than_a_minute_ago_are_forgotten() -> None:
    health = Health(RULES)
    for now in (0.0, 1.0, 62.0):
        fail(health, now)
    assert health.available(62.0)


@pytest.mark.parametrize("code", ["authentication", "permission", "quota", "model_not_found"])
def test_what_every_request_would_meet_counts_at_once(code: str) -> None:
    health = Health(RULES)
    fail(health, 0.0, code)
    assert not health.available(29.0)


@pytest.mark.parametrize("code", ["bad_request", "context_length", "content_filter", "timeout_total"])
def test_what_is_the_requests_own_fault_never_counts(code: str) -> None:
    health = Health(RULES)
    for _ in range(10):
        fail(health, 0.0, code)
    assert health.available(0.0)
    assert health.in_flight == 0


def test_a_pause_that_the_provider_asks_for_is_kept_within_bounds() -> None:
    health = Health(RULES)
    fail(health, 0.0, "rate_limit", retry_after=7.0)
    assert not health.available(6.9)
    assert health.available(7.0)
    health = Health(RULES)
    fail(health, 0.0, "rate_limit", retry_after=1e9)
    assert health.ready_at == MAX_COOLDOWN


def test_one_request_probes_and_its_success_ends_the_cooldown() -> None:
    health = Health(RULES)
    for _ in range(3):
        fail(health, 0.0)
    assert not health.available(29.0)
    probe = health.begin(30.0)
    assert probe
    assert not health.available(30.0), "a second request must not probe, too"
    health.succeeded(31.0, probe)
    assert health.available(31.0)
    fail(health, 31.0)
    assert health.available(31.0), "it begins with a clean slate"


def test_a_probe_that_fails_doubles_the_cooldown() -> None:
    health = Health(RULES)
    fail(health, 0.0, "quota")
    fail(health, 30.0)
    assert health.ready_at == 90.0
    for now in (1000.0, 2000.0, 3000.0, 4000.0):
        fail(health, now)
    assert health.ready_at == 4000.0 + MAX_COOLDOWN


def test_a_request_that_is_forced_on_it_while_it_cools_down_does_not_prolong_that() -> None:
    health = Health(RULES)
    fail(health, 0.0, "quota")
    for now in (1.0, 2.0, 29.0):
        fail(health, now)
    assert health.ready_at == 30.0
    fail(health, 30.0)
    assert health.ready_at == 90.0, "the probe doubles it, and it only"
    succeed(health, 31.0)
    assert health.available(31.0), "an answer ends it whenever it comes"


def test_a_probe_that_nobody_waits_for_leaves_the_place_to_another() -> None:
    health = Health(RULES)
    fail(health, 0.0, "quota")
    health.left(health.begin(30.0))
    assert health.available(30.0)
    assert health.in_flight == 0


def test_latency_is_an_average_that_fades() -> None:
    health = Health(RULES)
    assert health.latency(0.0) is None
    health.first_token(0.0, 2.0)
    assert health.latency(0.0) == 2.0
    assert health.latency(HALF_LIFE) == 1.0
    health.first_token(0.0, 1.0)
    assert health.latency(0.0) == pytest.approx(1.7)


def test_requests_and_tokens_of_the_last_minute_count() -> None:
    health = Health(RULES)
    assert health.within(0.0, rpm=1, tpm=1)
    health.succeeded(0.5, health.begin(0.0), tokens=10)
    assert health.within(0.5, rpm=2, tpm=11)
    assert not health.within(0.5, rpm=1, tpm=None)
    assert not health.within(0.5, rpm=None, tpm=10)
    assert health.within(61.0, rpm=1, tpm=1)


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"ratio": 2.0}, {"cooldown": 0.0}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]


# choosing


def member(name: str, weight: float = 1.0) -> Member:
    return Member(Deployment("m", id=name, weight=weight), Health(RULES))


def chosen(members: list[Member], strategy: str, now: float = 0.0, times: int = 600) -> Counter[str]:
    return Counter(choose(members, strategy, now).deployment.id for _ in range(times))  # type: ignore[arg-type]


def test_weights_are_shares() -> None:
    counts = chosen([member("a", 3.0), member("b", 1.0), member("spare", 0.0)], "weighted", times=2000)
    assert 1300 < counts["a"] < 1700
    assert counts["spare"] == 0
    assert chosen([member("spare", 0.0)], "weighted")["spare"]


def test_the_least_busy_is_that_with_the_fewest_requests_for_its_weight() -> None:
    a, b, c = member("a"), member("b", 4.0), member("c")
    for busy in (a, b, b, c):
        busy.health.begin(0.0)
    assert set(chosen([a, b, c], "least_busy")) == {"b"}
    a.health.left(Trial.NONE)
    assert set(chosen([a, b, c], "least_busy")) == {"a"}


def test_the_lowest_latency_wins_and_who_was_never_measured_goes_first() -> None:
    a, b, new = member("a"), member("b"), member("new")
    a.health.first_token(0.0, 2.0)
    b.health.first_token(0.0, 1.0)
    assert set(chosen([a, b], "lowest_latency")) == {"b"}
    assert set(chosen([a, b, new], "lowest_latency")) == {"new"}
    b.health.first_token(100.0, 9.0)
    assert set(chosen([a, b], "lowest_latency", 100.0)) == {"a"}
