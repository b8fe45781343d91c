"""A Redis URL, as users write it: no secret of it is ever shown, and no option of it wins over ours."""

from __future__ import annotations

import pytest
from redis.asyncio import SSLConnection
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from deltafan.broker.address import parse_address, redacted
from deltafan.broker.connections import Connections, is_transient, redis_errors
from deltafan.broker.misdirected import ClusterNodeError
from deltafan.errors import BrokerUnavailable, ConfigurationError
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
        ("redis+cluster://ann:hunter2@a:1,b:2", "redis+cluster://ann:***@a:1,b:2"),
        ("rediss+sentinel://:hunter2@a,b/main/2?sentinel_password=x", "rediss+sentinel://:***@a,b/main/2"),
        ("hunter2", "(not a URL)"),
        ("redis://:hunter2", "redis://:***"),
        ("redis://:hun/ter2", "redis://:***"),
        ("redis://ann:hun,ter:2", "redis://ann:***"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://[h", "redis://***"),
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
        ("redis://:hun?ter2@h", "a / \\? # or @ in a password is written"),
        ("redis://h?sentinel_password=x", "option 'sentinel_password'"),
        ("redis+other://h", "schemes"),
        ("unix+cluster:///run/redis.sock", "schemes"),
        ("h:6379", "schemes"),
        ("redis+cluster://", "host:port, with a comma"),
        ("redis+cluster://a:1,,b:2", "host:port, with a comma"),
        ("redis+cluster://a:one", "the port is a number"),
        ("redis://h:one/0", "the port is a number"),
        ("redis://h:70000/0", "the port is a number up to 65535"),
        ("redis://:hunter2", "the port is a number"),
        ("redis+sentinel://:hunter2/main", "host:port, with a comma"),
        ("redis://h:6379/x", "the database after the host is a number"),
        ("redis://h/1/x", "the database after the host is a number"),
        ("redis://h1:1,h2:2", "several hosts need redis\\+sentinel:// or redis\\+cluster://"),
        ("redis://:hun/ter2@h1,h2", "a / \\? # or @ in a password is written"),
        ("redis://:hun#t?er2@h", "a / \\? # or @ in a password is written"),
        ("unix://", "unix:///run/redis.sock"),
        ("unix://?db=1", "unix:///run/redis.sock"),
        ("unix://run/redis.sock", "unix:///run/redis.sock"),
        ("redis+cluster://:hun/ter2@h", "a / \\? # or @ in a password is written"),
        ("redis+cluster://:hun?ter2@h", "a / \\? # or @ in a password is written"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis+cluster://h?db=1", "database 0 only"),
        ("redis+cluster://h?retry=5", "option 'retry'"),
        ("redis+sentinel://a:1,b:2", "name of the primary follows"),
        ("redis+sentinel://a:1/main/x", "database after the primary's name"),
        ("rediss+cluster://h?ssl_cert_reqs=odd", "Invalid SSL Certificate Requirements"),
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
        "redis://",
        "redis:///2",
        "redis://:6380/",
        "redis://ann:p:w@[::1]:6379/0",
        "redis://ann:p@w@h/0",
        "rediss://ann:p%2Fw@h:6380/2?ssl_cert_reqs=none&client_name=web",
        "unix://:pw@/run/redis.sock?db=2",
        "redis://h?username=a&password=b&db=1",
        "redis+sentinel://ann:pw@a,[::1]:26380/main/2?sentinel_username=s&sentinel_password=t",
        "rediss+sentinel://a/main?ssl_cert_reqs=none",
        "redis+cluster://ann:pw@a:7000,b:7001/0",
        "rediss+cluster://a?ssl_cert_reqs=none",
    ],
)
async def test_what_a_user_may_say_is_taken(url: str) -> None:
    async with Connections(RedisSettings(url=url)) as connections:
        assert connections.commands.connection_pool.connection_kwargs["protocol"] == 2


def test_a_sentinel_url_names_the_sentinels_the_primary_and_the_database() -> None:
    address = parse_address("redis+sentinel://ann:p%2Fw@a,[::1]:26380/main/2?sentinel_password=t&client_name=web")
    assert (address.topology, address.nodes, address.service) == (
        "sentinel",
        (("a", 26379), ("::1", 26380)),
        "main",
    )
    assert address.options == {"username": "ann", "password": "p/w", "db": 2, "client_name": "web"}
    assert address.sentinel_options == {"password": "t"}


def test_a_cluster_url_names_nodes_from_which_the_others_are_found() -> None:
    address = parse_address("redis+cluster://ann:pw@a:7000,b")
    assert (address.topology, address.nodes) == ("cluster", (("a", 7000), ("b", 6379)))
    assert address.options == {"username": "ann", "password": "pw"}


@pytest.mark.parametrize(("kind", "rest"), [("sentinel", "/main"), ("cluster", "")])
def test_rediss_is_tls_to_every_node_and_every_sentinel(kind: str, rest: str) -> None:
    address = parse_address(f"rediss+{kind}://a,b{rest}?ssl_ca_certs=/ca.pem")
    assert issubclass(address.options["connection_class"], SSLConnection)
    assert address.options["ssl_ca_certs"] == "/ca.pem"
    if kind == "sentinel":
        assert address.sentinel_options == dict(address.options)


def test_the_parsed_url_shows_no_secret_when_it_is_printed() -> None:
    assert "hunter2" not in repr(parse_address("redis+sentinel://ann:hunter2@a/main?sentinel_password=hunter2"))


@pytest.mark.parametrize(
    "error",
    [
        MovedError("1 h:1"),
        AskError("1 h:1"),
        TryAgainError("Multiple keys request during rehashing of slot"),
        ClusterDownError("The cluster is down"),
        MasterDownError("Link with MASTER is down"),
        MasterNotFoundError("no sentinel knows it"),
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_cluster_or_sentinels_say_in_a_failover_passes(error: Exception) -> None:
    assert is_transient(error)
    with pytest.raises(BrokerUnavailable), redis_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ResponseError("DB index is out of range"), "REDIS_URL: no such database"),
        (ResponseError("SELECT is not allowed in cluster mode"), "node of a cluster: write redis\\+cluster://"),
        (ResponseError("This instance has cluster support disabled"), "no cluster: write redis://"),
        (ClusterNodeError("x"), "node of a cluster: write redis\\+cluster://"),
        (
            ResponseError("unknown command 'EVALSHA', with args beginning with: 'c754d' '1' 'a secret'"),
            "no command EVALSHA; if it is a sentinel, write redis\\+sentinel://host:port/name",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_server_of_another_kind_is_told_as_a_rule_of_the_url(error: Exception, told: str) -> None:
    assert not is_transient(error)
    with pytest.raises(ConfigurationError, match=told) as refused, redis_errors():
        raise error
    assert "secret" not in str(refused.value)


_FULL = "command not allowed when used memory > 'maxmemory'."


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError(f"{_FULL} script: {'c754d' * 8}, on @user_script:205."),
        OutOfMemoryError(f'Command # 1 (SET deltafan:{{0}}:x (y) 1) of pipeline caused error: ("{_FULL}",)'),
    ],
    ids=["in a script", "in a pipeline"],
)
def test_a_refusal_is_told_without_the_script_or_the_pipeline_around_it(error: Exception) -> None:
    with pytest.raises(BrokerUnavailable) as refused, redis_errors():
        raise error
    assert str(refused.value) == f"Redis does not take writes now: {_FULL}"
