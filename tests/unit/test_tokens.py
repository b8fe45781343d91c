"""Stream tokens: what may be made, what is taken, and what an attacker tries."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.errors import ConfigurationError, TokenExpired, TokenInvalid, ValidationError
from deltafan.settings import TokenSettings
from deltafan.tokens import LEEWAY, MAX_JOBS, MAX_PATTERNS, TOKEN_MAX, Grant, TokenKeys, fits, looks_like_token

SECRET = "a-secret-of-the-tests-" + "x" * 20
OTHER = "another-secret-of-the-tests-" + "y" * 20
JOB = "0-01a1f8c1413c5455812d9406fafa"


def keys(*entries: str, ttl: float = 60.0) -> TokenKeys:
    made = TokenKeys.of(TokenSettings(token_keys=entries or (f"k1={SECRET}",), token_ttl=ttl))
    assert made is not None
    return made


@dataclass(frozen=True)
class Job:
    id: str = JOB
    tenant: str = "default"
    channel: str | None = None
    pusher_channels: tuple[str, ...] = ()
    subject: str | None = None


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"aud": "deltafan", "tenant": "default", "scope": "read", "iat": now, "exp": now + 60, "jobs": [JOB]}
    return {name: value for name, value in (good | changes).items() if value is not None}


def forged(kid: str | None = "k1", secret: str = SECRET, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token that any JWT library could have made."""
    headers = (header or {}) | ({} if kid is None else {"kid": kid})
    return jwt.encode(claims(**changes), secret, algorithm="HS256", headers=headers)


def by_hand(header: object, body: object, secret: str = SECRET) -> str:
    """A token that no library would make, with a right signature over it."""
    parts = [base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (header, body)]
    signature = hmac.digest(secret.encode(), b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_what_is_made_is_taken_and_says_what_was_meant() -> None:
    token = keys().mint(
        "acme",
        jobs=[JOB],
        channels=["private-room-*"],
        subject="user 42",
        cancel=True,
        ttl=10,
        hide=["tool_results", "reasoning"],
    )
    grant = keys().verify(token)
    assert 10 <= grant.expires - time.time() + 1 <= 12
    assert grant == Grant(
        tenant="acme",
        jobs=frozenset({JOB}),
        channels=("private-room-*",),
        subject="user 42",
        rights=frozenset({"read", "cancel"}),
        hide=frozenset({"reasoning", "tool_results"}),
        expires=grant.expires,
    )
    assert looks_like_token(token)


def test_a_token_is_a_plain_jwt_that_other_languages_can_make() -> None:
    token = keys().mint("default", jobs=[JOB])
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "k1", "typ": "JWT"}
    body = jwt.decode(token, SECRET, algorithms=["HS256"], audience="deltafan")
    assert set(body) == {"aud", "tenant", "scope", "iat", "exp", "jobs"}
    assert body["scope"] == "read"
    assert keys().verify(forged()).jobs == {JOB}


def test_the_first_key_signs_and_all_verify_so_that_keys_can_be_changed_without_a_gap() -> None:
    old, both, new = keys(f"old={OTHER}"), keys(f"new={SECRET}", f"old={OTHER}"), keys(f"new={SECRET}")
    before, after = old.mint("default", jobs=[JOB]), both.mint("default", jobs=[JOB])
    assert jwt.get_unverified_header(after)["kid"] == "new"
    assert both.verify(before).jobs == both.verify(after).jobs == new.verify(after).jobs == {JOB}
    with pytest.raises(TokenInvalid, match="names no key"):
        new.verify(before)


FORGERIES = {
    "no signature": by_hand({"alg": "none", "kid": "k1"}, claims()).rpartition(".")[0] + ".",
    "alg none with a signature": by_hand({"alg": "none", "kid": "k1"}, claims()),
    "alg None": by_hand({"alg": "None", "kid": "k1"}, claims()),
    "another hash": jwt.encode(claims(), SECRET * 2, algorithm="HS512", headers={"kid": "k1"}),
    "no kid": forged(kid=None),
    "an unknown kid": forged(kid="k2"),
    "a kid that is a path": forged(kid="../../dev/null"),
    "a kid that is no string": by_hand({"alg": "HS256", "kid": ["k1"]}, claims()),
    "another secret": forged(secret=OTHER),
    "the empty secret": by_hand({"alg": "HS256", "kid": "k1"}, claims(), secret=""),
    "a key in the header": forged(secret=OTHER, header={"jwk": {"kty": "oct", "k": OTHER}}),
    "crit": by_hand({"alg": "HS256", "kid": "k1", "crit": ["exp"]}, claims()),
    "detached": by_hand({"alg": "HS256", "kid": "k1", "b64": False, "crit": ["b64"]}, claims()),
    "no audience": forged(aud=None),
    "another audience": forged(aud="other"),
    "no end": forged(exp=None),
    "an end that is text": forged(exp="9999999999"),
    "an end that is a word": forged(exp="never"),
    "an end that is true": forged(exp=True),
    "an end beyond all time": by_hand({"alg": "HS256", "kid": "k1"}, claims(exp=1e300)),
    "an end in milliseconds": forged(exp=int(time.time() * 1000)),
    "made in the future": forged(iat=int(time.time() + LEEWAY + 60)),
    "not yet": forged(nbf=int(time.time() + LEEWAY + 60)),
    "no tenant": forged(tenant=None),
    "an empty tenant": forged(tenant=""),
    "a tenant that is a list": forged(tenant=["default"]),
    "no scope": forged(jobs=None),
    "no jobs": forged(jobs=[]),
    "jobs that are text": forged(jobs=JOB),
    "jobs that are a star": forged(jobs=["*"]),
    "jobs that are an object": forged(jobs={JOB: 1}),
    "too many jobs": forged(jobs=[f"0-{n}" for n in range(MAX_JOBS + 1)]),
    "too many patterns": forged(channels=["a"] * (MAX_PATTERNS + 1)),
    "channels that are text": forged(channels="*"),
    "an empty pattern": forged(channels=[""]),
    "a pattern that is none": forged(channels=["a b"]),
    "an empty subject": forged(sub=""),
    "a subject that is a number": forged(sub=7),
    "a right that is none": forged(scope="read admin"),
    "no right": forged(scope=""),
    "rights that are a list": forged(scope=["read"]),
    "something else hidden": forged(hide=["text"]),
    "hidden that is text": forged(hide="reasoning"),
    "a list": by_hand({"alg": "HS256", "kid": "k1"}, [claims()]),
    "not JSON": "eyJ.eyJ.abc",
    "two parts": "eyJhbGciOiJIUzI1NiJ9.e30",
    "four parts": forged() + ".x",
    "empty": "",
    "dots": "..",
    "not ASCII": forged() + "ü",
    "half a character": "\udcff",
    "too long": forged(sub="x" * 100) + "A" * TOKEN_MAX,
    "deep": base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.abc",
}


@pytest.mark.parametrize("token", FORGERIES.values(), ids=FORGERIES)
def test_what_is_no_token_of_ours_is_refused_as_invalid(token: str) -> None:
    with pytest.raises(TokenInvalid):
        keys().verify(token)


def test_no_bit_of_a_token_may_be_another() -> None:
    token = forged()
    for place in range(0, len(token), 3):
        if token[place] != ".":
            with pytest.raises(TokenInvalid):
                keys().verify(token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :])


def test_an_expired_token_says_so_and_one_with_a_wrong_signature_does_not() -> None:
    with pytest.raises(TokenExpired):
        keys().verify(forged(exp=int(time.time())))
    with pytest.raises(TokenInvalid):
        keys().verify(forged(secret=OTHER, exp=int(time.time()) - 60))


def test_a_clock_that_is_a_little_ahead_does_no_harm() -> None:
    assert keys().verify(forged(iat=int(time.time() + LEEWAY / 2))).jobs == {JOB}


def test_claims_that_we_do_not_know_are_nobodys_business() -> None:
    assert keys().verify(forged(jti="1", iss="web", name="Ann")).jobs == {JOB}


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, [""]),
        ({"jobs": ["*"]}, ["job"]),
        ({"jobs": ["0-a", "nothing"]}, ["job"]),
        ({"jobs": [7]}, ["job"]),
        ({"jobs": [f"0-{n}" for n in range(MAX_JOBS + 1)]}, ["job"]),
        ({"channels": "private-*"}, ["channels"]),
        ({"channels": [""]}, ["channels"]),
        ({"channels": ["a\n"]}, ["channels"]),
        ({"channels": ["a"] * (MAX_PATTERNS + 1)}, ["channels"]),
        ({"subject": ""}, ["subject"]),
        ({"subject": "a\0"}, ["subject"]),
        ({"subject": "x" * 201}, ["subject"]),
        ({"jobs": [JOB], "ttl": 0}, ["ttl"]),
        ({"jobs": [JOB], "ttl": float("nan")}, ["ttl"]),
        ({"jobs": [JOB], "ttl": float("inf")}, ["ttl"]),
        ({"jobs": [JOB], "ttl": True}, ["ttl"]),
        ({"jobs": [JOB], "hide": ["text"]}, ["hide"]),
        ({"jobs": [JOB], "hide": "reasoning"}, ["hide"]),
        ({"subject": "", "ttl": -1, "hide": ["x"]}, ["subject", "ttl", "hide"]),
        ({"jobs": [f"0-{n:0150d}" for n in range(MAX_JOBS)]}, [""]),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        keys().mint("default", **arguments)
    assert [problem.field for problem in caught.value.fields] == fields


def test_the_largest_token_that_is_made_is_taken() -> None:
    jobs = [f"0-01a1f8c1413c5455812d{n:08x}" for n in range(MAX_JOBS)]
    assert keys().verify(keys().mint("default", jobs=jobs)).jobs == set(jobs)


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        (["secret-without-a-name-" + "x" * 20], "must be kid=secret"),
        ([f"={SECRET}"], "must be kid=secret"),
        ([f"a b={SECRET}"], "must be kid=secret"),
        ([f"{'k' * 65}={SECRET}"], "must be kid=secret"),
        (["k1=" + "x" * 31], "32 or more"),
        (["k1=" + "x" * 31 + " y"], "32 or more"),
        (["k1=" + "ü" * 40], "32 or more"),
        ([f"k1={SECRET}", f"k1={OTHER}"], "same name"),
    ],
)
def test_a_wrong_key_is_named_by_its_place_and_never_shown(entries: list[str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as caught:
        TokenKeys.of(TokenSettings(token_keys=tuple(entries)))
    assert f"entry {len(entries)}" in caught.value.message
    assert not any(part in caught.value.message for entry in entries for part in entry.split("=") if len(part) > 8)


def test_without_keys_there_are_none_and_a_secret_may_hold_an_equals_sign_and_shows_nowhere() -> None:
    assert TokenKeys.of(TokenSettings()) is None
    assert keys("k=" + "x" * 31 + "==").secrets == {"k": "x" * 31 + "=="}
    assert SECRET not in repr(keys()) + repr(TokenSettings(token_keys=(f"k1={SECRET}",)))


@pytest.mark.parametrize(
    ("scope", "job", "covered"),
    [
        ({"jobs": [JOB]}, Job(), True),
        ({"jobs": [JOB]}, Job(tenant="acme"), False),
        ({"jobs": [JOB]}, Job(id=JOB + "x"), False),
        ({"subject": "ann"}, Job(subject="ann"), True),
        ({"subject": "ann"}, Job(subject="bob"), False),
        ({"subject": "ann"}, Job(subject=None), False),
        ({"subject": "ann"}, Job(subject="ann", tenant="acme"), False),
        ({"subject": "ann"}, Job(id="0-ann", channel="ann"), False),
        ({"channels": ["room-*"]}, Job(channel="room-1"), True),
        ({"channels": ["room-*"]}, Job(channel="my-room-1"), False),
        ({"channels": ["room-*"]}, Job(pusher_channels=("private-room-1", "room-2")), True),
        ({"channels": ["room-*"]}, Job(pusher_channels=("private-room-1",)), False),
        ({"channels": ["*"]}, Job(), False),
        ({"channels": ["*"]}, Job(channel="a", tenant="acme"), False),
        ({"jobs": ["0-other"], "subject": "ann", "channels": ["b"]}, Job(channel="b"), True),
    ],
)
def test_a_token_covers_a_job_of_its_tenant_that_is_in_one_of_its_scopes(
    scope: dict[str, Any], job: Job, covered: bool
) -> None:
    assert keys().verify(keys().mint("default", **scope)).covers(job) is covered


def test_a_pattern_is_not_compared_with_channels_of_others() -> None:
    grant = keys().verify(keys().mint("default", channels=["*"]))
    job = Job(channel="acme@room", pusher_channels=("private-acme@room",))
    assert grant.covers(job)
    assert not grant.covers(job, lambda channel: "acme@" not in channel)


@pytest.mark.parametrize(
    ("pattern", "name", "fit"),
    [
        ("a", "a", True), ("a", "ab", False), ("a", "A", False), ("*", "", True), ("*", "anything", True),
        ("a*", "a", True), ("a*b", "ab", True), ("a*b", "aXb", True), ("a*b", "a", False), ("aa*aa", "aaa", False),
        ("*a*", "bab", True), ("*a*", "bb", False), ("a*b*c", "a1b2c", True), ("a*b*c", "acb", False),
        ("**", "x", True), ("a**b", "ab", True), ("a.c", "abc", False), ("a?", "ab", False), ("[ab]", "a", False),
        ("a*b", "a\nb", True), ("a", "a\n", False),
    ],
)  # fmt: skip
def test_a_star_stands_for_any_characters_and_nothing_else_stands_for_anything(
    pattern: str, name: str, fit: bool
) -> None:
    assert fits(pattern, name) is fit


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_patterns_fit_as_shell_patterns_do(pattern: str, name: str) -> None:
    assert fits(pattern, name) is fnmatchcase(name, pattern)


def test_no_pattern_takes_long() -> None:
    began = time.process_time()
    for _ in range(100):
        assert not fits("*a" * 81 + "*b", "a" * 164)
    assert time.process_time() - began < 5, "a backtracking matcher would not end in this life"


def test_what_a_token_allows_has_a_name_that_its_time_does_not_change() -> None:
    first, later = (keys().verify(keys().mint("default", jobs=[JOB], ttl=ttl)) for ttl in (10, 1000))
    other = keys().verify(keys().mint("default", jobs=[JOB], cancel=True))
    assert first.fingerprint == later.fingerprint != other.fingerprint
