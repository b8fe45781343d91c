from __future__ import annotations

import pytest

from deltafan.devserver.provider import FAULTS, Fault, parse_fault, parse_faults
from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.endings import Ending, with_faults
from deltafan.devserver.provider.faults import active_faults
from deltafan.errors import ValidationError


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cut=5", Fault("cut", 5)),
        ("cut=5*1", Fault("cut", 5, 1)),
        ("quota*2", Fault("quota", None, 2)),
        ("rate_limit=0.25", Fault("rate_limit", 0.25)),
        (" crlf ", Fault("crlf")),
    ],
)
def test_a_fault_is_read_as_it_is_written(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_works_by_its_name_alone(name: str) -> None:
    assert parse_fault(name).name == name


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("explode", "unknown fault 'explode'; one of rate_limit, quota, "),
        ("cut=x", "is not of the form NAME, NAME=NUMBER or NAME=NUMBER*K"),
        ("cut=1.5", "cut: chunks must be a whole number from 0 to"),
        ("malformed=0", "malformed: chunks must be a whole number from 1 to"),
        ("server_error=404", "server_error: status must be a whole number from 500 to 599"),
        ("quota=3", "quota takes no argument"),
        ("cut=3*0", "the number after * must be from 1 to"),
        ("slow_headers=99999", "slow_headers: seconds must be a number from 0 to 3600"),
    ],
)
def test_a_wrong_fault_is_refused_with_its_rule(text: str, rule: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_fault(text)
    assert caught.value.fields[0].field == "fault"
    assert rule in caught.value.fields[0].message


def test_a_list_is_separated_by_commas_and_may_be_empty() -> None:
    assert parse_faults("crlf, cut=2") == (Fault("crlf"), Fault("cut", 2))
    assert parse_faults("") == ()


def test_a_limited_fault_meets_the_first_requests_only() -> None:
    faults = parse_faults("rate_limit*1,cut=5*2,cut=9")
    assert [list(active_faults(faults, nth)) for nth in (1, 2, 3)] == [["rate_limit", "cut"], ["cut"], ["cut"]]
    assert [active_faults(faults, nth)["cut"].arg for nth in (1, 2, 3)] == [5, 5, 9]


def test_of_two_endings_the_earlier_one_comes() -> None:
    pieces = [Piece(b"%d" % n, True) for n in range(9)]
    items = list(with_faults(pieces, active_faults(parse_faults("stall=7,cut=3"), 1), b""))
    assert items == [*pieces[:3], Ending.CUT]


def test_a_fault_after_the_last_chunk_comes_and_one_beyond_it_does_not() -> None:
    pieces = [Piece(b"a", True), Piece(b"b", True)]
    assert list(with_faults(pieces, active_faults(parse_faults("cut=2"), 1), b"")) == [*pieces, Ending.CUT]
    assert list(with_faults(pieces, active_faults(parse_faults("cut=3"), 1), b"")) == pieces
