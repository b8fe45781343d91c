"""Outages are told once at the loss and once at the return."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.telemetry import outage
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage

AWAY = BrokerUnavailable("Redis cannot be reached: refused")
FULL = BrokerUnavailable("Redis does not take writes now: OOM")


class Told:
    def __init__(self) -> None:
        self.signals: list[Signal] = []
        self.outage = Outage(self.signals.append, {"worker": "w"})

    @property
    def names(self) -> list[str]:
        return [signal.name for signal in self.signals]


def test_however_many_meet_it_and_however_often_it_is_two_lines() -> None:
    told = Told()
    for _ in range(3):
        told.outage.failed("append", AWAY, ["job-1", "job-2"])
        told.outage.failed("claim", AWAY, ["job-2", "job-3"])
    told.outage.went_well("append")
    told.outage.went_well("claim")
    lost, back = told.signals
    assert (lost.name, lost.level, lost.fields["error"]) == ("redis.unavailable", "warning", str(AWAY))
    assert (back.name, back.fields["jobs"], back.fields["worker"]) == ("redis.available", 3, "w")
    assert back.fields["seconds"] == round(back.fields["seconds"], 1)


def test_a_redis_that_reads_but_does_not_write_is_not_told_of_in_turns() -> None:
    told = Told()
    for _ in range(3):
        told.outage.failed("append", FULL)
        told.outage.went_well("promoting")
        told.outage.went_well("taking")
    assert told.names == ["redis.unavailable"]


def test_another_cause_is_another_line() -> None:
    told = Told()
    told.outage.failed("append", AWAY)
    told.outage.failed("append", FULL)
    told.outage.failed("append", FULL)
    told.outage.went_well("append")
    assert told.names == ["redis.unavailable", "redis.unavailable", "redis.available"]


def test_a_right_that_was_taken_is_told_once_whatever_meets_it() -> None:
    told = Told()
    for _ in range(2):
        for activity in ("append", "taking", "claim of 0-a"):
            told.outage.failed(activity, ConfigurationError("no permission to run 'evalsha'"))
    told.outage.failed("taking", ConfigurationError("no permission to run 'xreadgroup'"))
    assert [(s.name, s.level) for s in told.signals] == [("redis.refused", "error")] * 2


def test_what_is_in_the_way_is_told_for_each_activity_once() -> None:
    told = Told()
    for _ in range(2):
        told.outage.failed("taking", ResponseError("WRONGTYPE"))
        told.outage.failed("upkeep", ResponseError("WRONGTYPE"))
    assert [(s.name, s.level, s.fields["activity"]) for s in told.signals] == [
        ("redis.refused", "error", "taking"),
        ("redis.refused", "error", "upkeep"),
    ]


def test_each_outage_counts_for_itself() -> None:
    told = Told()
    for jobs in (["a", "b"], ["c"]):
        told.outage.failed("append", AWAY, jobs)
        told.outage.went_well("append")
    assert [signal.fields.get("jobs") for signal in told.signals] == [None, 2, None, 1]


def test_success_without_a_failure_before_is_not_worth_a_line() -> None:
    told = Told()
    told.outage.went_well("append")
    assert told.names == []


def test_what_was_never_tried_again_does_not_hide_the_next_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    told, now = Told(), 1000.0
    monkeypatch.setattr(outage.time, "monotonic", lambda: now)
    told.outage.failed("POST /v1/jobs", AWAY)
    now += outage.FORGOTTEN + 1
    told.outage.failed("GET /v1/jobs", AWAY)
    assert told.names == ["redis.unavailable", "redis.unavailable"]


def test_what_was_never_tried_again_does_not_hide_the_return(monkeypatch: pytest.MonkeyPatch) -> None:
    told, now = Told(), 1000.0
    monkeypatch.setattr(outage.time, "monotonic", lambda: now)
    told.outage.failed("POST /v1/jobs", AWAY)
    told.outage.failed("GET /v1/jobs", AWAY)
    told.outage.went_well("GET /v1/jobs")
    assert told.names == ["redis.unavailable"]
    now += outage.FORGOTTEN + 1
    told.outage.went_well("GET /v1/jobs")
    assert told.names == ["redis.unavailable", "redis.available"]
