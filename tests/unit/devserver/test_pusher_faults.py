"""The emulator's faults, its app's rules, the channel names it accepts, and who may look inside."""

from __future__ import annotations

from typing import Any

import pytest

from deltafan.devserver.pusher import App, Faults, parse_fault
from deltafan.devserver.pusher.inspection import is_loopback
from deltafan.devserver.pusher.rules import channel_problem
from deltafan.errors import ValidationError


@pytest.mark.parametrize("text", ["status=500", "status=429*3", "delay=0.25", "drop*2", "lost_reply", "skew=-700"])
def test_a_fault_reads_what_it_writes(text: str) -> None:
    assert str(parse_fault(text)) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is not of the form NAME"),
        ("status=500*", "is not of the form NAME"),
        ("status 500", "is not of the form NAME"),
        ("explode", "unknown fault 'explode'; one of status, delay, drop, lost_reply, skew"),
        ("status", "status needs a whole number from 400 to 599"),
        ("status=200", "status needs a whole number from 400 to 599"),
        ("status=500.5", "status needs a whole number from 400 to 599"),
        ("delay=-1", "delay needs a number from 0 to 3600"),
        ("skew=9999999", "skew needs a number from -1000000 to 1000000"),
        ("drop=1", "drop takes no number"),
        ("drop*0", "the number after * must be 1 or more"),
    ],
)
def test_a_bad_fault_says_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_fault(text)
    assert rule in str(refused.value)


def test_faults_of_different_names_work_together_and_those_of_one_name_after_each_other() -> None:
    faults = Faults(["status=500*2", "skew=700", "status=403*1"])
    taken = [sorted(map(str, faults.take().values())) for _ in range(4)]
    assert taken == [
        ["skew=700", "status=500*2"],
        ["skew=700", "status=500*1"],
        ["skew=700", "status=403*1"],
        ["skew=700"],
    ]
    assert faults.pending == ["skew=700"]


def test_a_bad_list_changes_nothing() -> None:
    faults = Faults(["drop"])
    for bad in (["status=500", "explode"], ["drop"] * 101):
        with pytest.raises(ValidationError):
            faults.set(*bad)
    assert faults.pending == ["drop"]
    faults.set()
    assert faults.take() == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("app_id", "app"),
        ("app_id", ""),
        ("app_id", "١"),
        ("key", ""),
        ("key", "a b"),
        ("key", "a:b"),
        ("secret", ""),
        ("secret", "1234567"),
        ("secret", "12345678\n"),
        ("webhook_url", "localhost:80"),
        ("webhook_url", "ftp://localhost/"),
        ("webhook_url", "http://"),
        ("webhook_url", "http://[::1"),
        ("webhook_url", "http://localhost:99999/"),
        ("activity_timeout", 0),
        ("activity_timeout", float("nan")),
        ("pong_timeout", float("inf")),
        ("max_connections", 0),
        ("outbox_bytes", 0),
    ],
)
def test_an_app_that_breaks_a_rule_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        App(**{field: value})
    assert [error.field for error in refused.value.fields] == [field]


def test_an_apps_secret_is_not_shown() -> None:
    app = App()
    assert app.secret not in repr(app)
    assert len(app.secret) == 32


@pytest.mark.parametrize("name", ["a", "private-encrypted-A_z=@,.;0", "c" * 164, "#server-to-user-7"])
def test_a_good_channel_name(name: str) -> None:
    assert channel_problem(name) is None


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\n", "ä", "c" * 165, "#a", "#server-to-user-"])
def test_a_bad_channel_name(name: str) -> None:
    assert channel_problem(name) is not None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.4.5", "::1", "::ffff:127.0.0.1", "::1%lo"])
def test_this_machine_may_look_inside(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", [None, "", "192.168.1.2", "0.0.0.0", "::", "::ffff:10.0.0.1", "fe80::1%eth0", "x"])
def test_no_other_may(address: str | None) -> None:
    assert not is_loopback(address)
