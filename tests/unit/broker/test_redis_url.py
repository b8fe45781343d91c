"""A Redis URL, as users write it: no secret of it is ever shown, and no option of it wins over ours."""

from __future__ import annotations

import pytest

from deltafan.broker.connections import Connections, redacted
from deltafan.errors import ConfigurationError
from deltafan.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:hunter2@h:1/0", "redis://:***@h:1/0"),
        ("rediss://ann:hunter2@h/3", "rediss://ann:***@h/3"),
        ("redis://hunter2@h", "redis://:***@h"),
        ("redis://:hun/ter2@h", "redis://:***@h"),
        ("redis://:hun#ter2@h", "redis://:***@h"),
        ("redis://:hun@ter2@h", "redis://:***@h"),
        ("redis://:hun?ter2@h", "redis://:***@h"),
        ("redis://h?password=hunter2", "redis://h"),
        ("unix://:hunter2@/run/redis.sock?db=2", "unix://:***@/run/redis.sock"),
        ("hunter2", "(not a URL)"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("redis://h?decode_responses=true", "option 'decode_responses'"),
        ("redis://h?protocol=3", "option 'protocol'"),
        ("redis://h?retry=5", "option 'retry'"),
        ("redis://h?foo=", "option 'foo'"),
        ("redis://h?db=x", "'db'"),
        ("redis://:hun/ter2@h", "a / \\? # or @ in a password is written"),
        ("rediss://h?ssl_cert_reqs=odd", "Invalid SSL Certificate Requirements"),
        ("rediss://h?ssl_foo=1", "ssl_foo"),
        ("http://h", "schemes"),
        ("redis://[h", "Invalid IPv6"),
    ],
)
async def test_an_option_that_is_not_a_users_is_refused_at_once(url: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as refused:
        Connections(RedisSettings(url=url))
    assert "hun" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://ann:p%2Fw@h:6380/2?ssl_cert_reqs=none&client_name=web",
        "unix://:pw@/run/redis.sock?db=2",
        "redis://h?username=a&password=b&db=1",
    ],
)
async def test_what_a_user_may_say_is_taken(url: str) -> None:
    async with Connections(RedisSettings(url=url)) as connections:
        assert connections.commands.connection_pool.connection_kwargs["protocol"] == 2
