"""Whose a channel is, where several tenants share a Pusher app."""

from __future__ import annotations

import pytest

from deltafan.errors import ValidationError
from deltafan.job import parse_spec
from deltafan.relay.ownership import Ownership

SEVERAL = Ownership(frozenset({"default", "acme", "beta"}))
PREFIXES = ("", "private-", "presence-", "private-encrypted-", "private-cache-", "presence-cache-", "cache-")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_channel_belongs_to_the_tenant_before_its_at_and_any_other_to_default(prefix: str) -> None:
    for name, owner in (
        ("acme@room", "acme"),
        ("acme@beta@room", "acme"),
        ("acme@", "acme"),
        ("room", "default"),
        ("acme", "default"),
        ("acme-room", "default"),
        ("@acme", "default"),
        ("gamma@room", "default"),
        ("ACME@room", "default"),
        ("x-acme@room", "default"),
    ):
        owners = {tenant for tenant in ("default", "acme", "beta") if SEVERAL.is_of(tenant, prefix + name)}
        assert owners == {owner}, prefix + name


def test_with_one_tenant_all_are_its_own_and_with_none_nobodys() -> None:
    one = Ownership(frozenset({"acme"}))
    assert one.is_of("acme", "room")
    assert one.is_of("acme", "private-beta@room")
    assert not one.is_of("default", "room"), "a token of a tenant that has no key reaches no channel"
    assert Ownership(frozenset()).is_of("anybody", "room")


def test_a_tenant_without_a_key_has_its_own_channels_and_where_it_is_named_nobody_else_has_them() -> None:
    keyless = Ownership(frozenset({"default"}))
    assert keyless.is_of("acme", "private-acme@room")
    assert not keyless.is_of("acme", "private-room")
    named = Ownership(frozenset({"default", "acme"}))
    assert named.is_of("acme", "private-acme@room")
    assert not named.is_of("default", "private-acme@room")


def test_a_job_may_not_go_to_a_channel_of_another_tenant_and_each_is_named() -> None:
    spec = parse_spec(
        {
            "model": "m",
            "prompt": "p",
            "sinks": ["pusher"],
            "channel": "acme@a",
            "pusher_channels": ["private-acme@b", "private-c", "beta@d"],
        }
    )
    for tenant, fields in (
        ("acme", ["pusher_channels[1]", "pusher_channels[2]"]),
        ("beta", ["channel", "pusher_channels[0]", "pusher_channels[1]"]),
        ("default", ["channel", "pusher_channels[0]", "pusher_channels[2]"]),
    ):
        with pytest.raises(ValidationError) as caught:
            SEVERAL.check(tenant, spec)
        assert [problem.field for problem in caught.value.fields] == fields
    Ownership(frozenset({"acme"})).check("acme", spec)
