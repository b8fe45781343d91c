"""Token buckets and addresses: how often one may ask, and who "one" is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.errors import ConfigurationError
from deltafan.relay.limits import TABLE_SIZE, Buckets, Limits, _bucket, client_address, parse_networks
from deltafan.settings import RelaySettings


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(2.0, 3.0, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
    clock.now += 1000
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5], "no more than the burst is ever saved up"


def test_each_has_a_bucket_of_its_own_and_looking_takes_nothing() -> None:
    buckets = Buckets(1.0, 1.0, clock=Clock())
    assert [buckets.wait("a"), buckets.take("a"), buckets.take("b")] == [0, 0, 0]
    assert [buckets.wait("a"), buckets.take("a"), buckets.wait("c")] == [1, 1, 0]


def test_a_rate_of_0_is_no_limit_and_keeps_nothing() -> None:
    buckets = Buckets(0.0, 0.0)
    assert not any(buckets.take("a") for _ in range(1000))
    assert len(buckets) == 0


def test_a_rate_below_one_still_lets_one_through() -> None:
    buckets = Buckets(0.01, 0.05, clock=Clock())
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(100)


def test_no_number_of_addresses_grows_the_table_and_the_one_that_asks_on_is_kept() -> None:
    buckets = Buckets(0.001, 2.0)
    buckets.take("busy")
    for n in range(3 * TABLE_SIZE):
        if n == TABLE_SIZE // 2:
            assert buckets.take("busy") == 0
        buckets.take(f"10.0.0.{n}")
        if n == TABLE_SIZE:
            assert buckets.take("busy") > 0, "used up, and not forgotten"
    assert len(buckets) == TABLE_SIZE


@given(st.lists(st.floats(0, 5), max_size=60))
def test_whatever_the_pauses_no_more_passes_than_burst_and_rate_allow(pauses: list[float]) -> None:
    clock = Clock()
    buckets = Buckets(2.0, 3.0, clock=clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        passed += buckets.take("a") == 0
    assert passed <= 3 + 2 * (clock.now - 100) + 1e-6


PROXIES = parse_networks(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.9.9.9 , 192.0.2.7"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("10.0.0.1", ["garbage"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:4711"], "10.0.0.1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1"], "-"),
    ],
)
def test_what_a_client_writes_itself_is_never_believed(peer: str | None, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_without_trusted_proxies_the_peer_it_is() -> None:
    assert client_address("10.0.0.1", ["198.51.100.1"], ()) == "10.0.0.1"


def test_a_customers_whole_network_shares_a_bucket_where_one_host_has_all_of_its_addresses() -> None:
    assert _bucket("2001:db8::1") == _bucket("2001:db8::ffff:1") != _bucket("2001:db8:0:1::1")
    assert _bucket("::ffff:192.0.2.1") == _bucket("192.0.2.1") != _bucket("192.0.2.2")


@pytest.mark.parametrize("entry", ["proxy.example", "10.0.0.0/33", "10.0.0.1/8", ""])
def test_an_entry_that_is_no_network_is_a_mistake_told_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="DELTAFAN_TRUSTED_PROXIES, entry 2"):
        Limits(RelaySettings(trusted_proxies=("10.0.0.0/8", entry)))
