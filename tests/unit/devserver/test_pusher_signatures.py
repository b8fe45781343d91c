"""Signatures, with the vectors of Pusher's documentation."""

from __future__ import annotations

import pytest

from deltafan.devserver.pusher.api_error import ApiError
from deltafan.devserver.pusher.authorization import authorize
from deltafan.devserver.pusher.settings import App
from deltafan.devserver.pusher.signatures import body_md5, channel_text, is_signature, request_text, sign, user_text

# The credentials, requests and results of
# https://pusher.com/docs/channels/library_auth_reference/rest-api/#worked-authentication-example and
# https://pusher.com/docs/channels/library_auth_reference/auth-signatures/.
SECRET = "7ad3773142a6692b25b8"
APP = App(app_id="3", key="278d425bdf160c739803", secret=SECRET)
BODY = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
QUERY = {
    "auth_key": APP.key,
    "auth_timestamp": "1353088179",
    "auth_version": "1.0",
    "body_md5": "ec365a775a4cd0599faeb73354201b6f",
    "auth_signature": "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
}
NOW = 1353088179.5


def test_the_documented_request_has_the_documented_digest_and_signature() -> None:
    assert body_md5(BODY) == QUERY["body_md5"]
    text = request_text("POST", "/apps/3/events", QUERY.items())
    assert text == (
        "POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0"
        "&body_md5=ec365a775a4cd0599faeb73354201b6f"
    )
    assert sign(SECRET, text) == QUERY["auth_signature"]


def test_the_documented_request_is_authorized() -> None:
    authorize(APP, "POST", "/apps/3/events", QUERY.items(), BODY, app_id="3", now=NOW)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"method": "GET"}, 401),
        ({"path": "/apps/3/batch_events"}, 401),
        ({"body": BODY + b" "}, 401),
        ({"body": b""}, 401),
        ({"query": {"info": "user_count"}}, 401),
        ({"query": {"auth_timestamp": "1353088180"}}, 401),
        ({"query": {"auth_signature": QUERY["auth_signature"].upper()}}, 401),
        ({"app_id": "4"}, 404),
        ({"now": NOW + 600}, 401),
        ({"now": NOW - 600}, 401),
    ],
)
def test_whatever_is_changed_of_it_it_is_refused(changes: dict[str, object], status: int) -> None:
    request = {
        "method": "POST",
        "path": "/apps/3/events",
        "body": BODY,
        "app_id": "3",
        "now": NOW,
        "query": {},
    } | changes
    query = QUERY | request.pop("query")  # type: ignore[operator]
    with pytest.raises(ApiError) as refused:
        authorize(APP, query=query.items(), **request)  # type: ignore[arg-type]
    assert refused.value.status == status


@pytest.mark.parametrize("seconds", [-599, 599])
def test_a_clock_that_is_nearly_ten_minutes_off_is_accepted(seconds: int) -> None:
    authorize(APP, "POST", "/apps/3/events", QUERY.items(), BODY, app_id="3", now=1353088179 + seconds)


def test_the_times_are_told_in_pushers_words() -> None:
    with pytest.raises(ApiError) as refused:
        authorize(APP, "POST", "/apps/3/events", QUERY.items(), BODY, app_id="3", now=NOW + 3600)
    assert refused.value.message == (
        "Timestamp expired: Given timestamp (2012-11-16T17:49:39Z) not within 600s "
        "of server time (2012-11-16T18:49:39Z)"
    )


def test_parameters_are_sorted_in_lower_case_and_not_escaped() -> None:
    text = request_text("get", "/some/path", [("Name", "Something else"), ("auth_key", "foo"), ("auth_signature", "x")])
    assert text == "GET\n/some/path\nauth_key=foo&name=Something else"


@pytest.mark.parametrize(
    ("channel", "channel_data", "signature"),
    [
        ("private-foobar", None, "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"),
        (
            "presence-foobar",
            '{"user_id":10,"user_info":{"name":"Mr. Channels"}}',
            "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
        ),
        (  # an older edition; some copies have its signature under the newer name
            "presence-foobar",
            '{"user_id":10,"user_info":{"name":"Mr. Pusher"}}',
            "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
        ),
    ],
)
def test_the_documented_subscriptions_have_the_documented_signatures(
    channel: str, channel_data: str | None, signature: str
) -> None:
    text = channel_text("1234.1234", channel, channel_data)
    assert sign(SECRET, text) == signature
    assert is_signature(SECRET, text, signature)
    assert not is_signature(SECRET, text, signature[:-1])
    assert not is_signature(SECRET + "x", text, signature)


def test_a_sign_in_is_signed_with_its_socket_and_its_data() -> None:
    assert user_text("1234.1234", '{"id":"10"}') == '1234.1234::user::{"id":"10"}'


def test_a_signature_that_is_no_text_in_utf_8_is_no_signature() -> None:
    assert not is_signature(SECRET, "\udcff", "\udcff")
