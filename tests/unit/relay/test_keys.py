from __future__ import annotations

import hashlib

import pytest

from deltafan.errors import ConfigurationError
from deltafan.relay.access import check_binding, is_loopback
from deltafan.relay.keys import RIGHTS, ApiKeys, parse_keys

DIGEST = hashlib.sha256(b"from-a-digest").hexdigest()


def tenant(keys: ApiKeys, key: str) -> str | None:
    found = keys.find(key)
    return None if found is None else found.tenant


def test_an_entry_is_a_key_or_its_digest_alone_or_with_its_tenant() -> None:
    keys = parse_keys(["plain-key", "acme=key-of-acme", f"sha256:{DIGEST}", " b.c=spaced-out "])
    found = {key: tenant(keys, key) for key in ("plain-key", "key-of-acme", "from-a-digest", "spaced-out", DIGEST, "")}
    assert found == {
        "plain-key": "default",
        "key-of-acme": "acme",
        "from-a-digest": "default",
        "spaced-out": "b.c",
        DIGEST: None,
        "": None,
    }


def test_a_tenant_may_have_several_keys_and_an_upper_case_digest() -> None:
    keys = parse_keys(["acme=first-key", "acme=second-key", f"acme=sha256:{DIGEST.upper()}", "acme=first-key"])
    assert {tenant(keys, k) for k in ("first-key", "second-key", "from-a-digest")} == {"acme"}


def test_a_key_may_hold_an_equals_sign_when_its_tenant_is_named() -> None:
    assert tenant(parse_keys(["default=YWJjZGVmZ2g="]), "YWJjZGVmZ2g=") == "default"


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        (["short"], "8 or more"),
        (["YWJjZGVmZ2g="], "needs a tenant before it"),
        (["has space in"], "visible ASCII"),
        (["schlüssel-lang"], "visible ASCII"),
        ([""], "8 or more"),
        (["=longenough1"], "tenant must be"),
        (["a b=longenough1"], "tenant must be"),
        (["sha256:abc"], "64 hexadecimal"),
        (["acme=sha256:" + "g" * 64], "64 hexadecimal"),
        (["same-key-1", "acme=same-key-1"], "another tenant"),
        (["acme:read=same-key-1", "acme=same-key-1"], "other rights"),
        (["acme:read+write=longenough1"], "rights must be of"),
        (["acme:=longenough1"], "rights must be of"),
        (["acme:read+=longenough1"], "rights must be of"),
        (["acme:READ=longenough1"], "rights must be of"),
        ([":read=longenough1"], "tenant must be"),
        (["a@b=longenough1"], "tenant must be"),
    ],
)
def test_a_wrong_entry_is_named_by_its_place_and_never_shown(entries: list[str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as caught:
        parse_keys(entries)
    assert f"entry {len(entries)}" in caught.value.message
    assert not any(entry in caught.value.message for entry in entries if entry)


def test_a_key_has_the_rights_that_its_entry_names_and_without_any_all_of_them() -> None:
    keys = parse_keys(["acme:enqueue+read=key-one-1", f"acme:admin=sha256:{DIGEST}", "acme=key-three"])
    rights = {key: sorted(keys.find(key).rights) for key in ("key-one-1", "from-a-digest", "key-three")}  # type: ignore[union-attr]
    assert rights == {"key-one-1": ["enqueue", "read"], "from-a-digest": ["admin"], "key-three": sorted(RIGHTS)}


def test_a_key_without_a_tenant_may_hold_a_colon() -> None:
    assert tenant(parse_keys(["web:longenough1"]), "web:longenough1") == "default"


def test_keys_do_not_show_in_a_repr_nor_does_a_name_tell_a_digest() -> None:
    keys = parse_keys(["plain-key"])
    digest = hashlib.sha256(b"plain-key")
    (entry,) = keys.entries
    for text in (repr(keys), entry.name):
        assert digest.hexdigest()[:8] not in text
        assert repr(digest.digest()) not in text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[
            (name, True)
            for name in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "a.localhost", "localhost.")
        ],
        *[
            (name, False)
            for name in ("0.0.0.0", "::", "", "10.0.0.1", "localhost.evil", "127.0.0.1.evil", "2130706433")
        ],
    ],
)
def test_loopback_is_told_by_name_and_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_open_relay_may_listen_on_loopback_only_and_one_with_keys_anywhere() -> None:
    check_binding("127.0.0.1", parse_keys([]))
    check_binding("0.0.0.0", parse_keys(["plain-key"]))
    with pytest.raises(ConfigurationError, match="all interfaces"):
        check_binding("", parse_keys([]))
