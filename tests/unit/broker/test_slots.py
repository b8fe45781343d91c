"""Where a command goes on a cluster: by its first key, wherever that stands."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ClusterDownError
from redis.exceptions import ConnectionError as RedisConnectionError

from deltafan.broker.address import Node
from deltafan.broker.slots import SlotMap, key_of, slot_of

A, B, C = ("a", 1), ("b", 2), ("c", 3)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("XADD", b"k", "*", "a", "b"), b"k"),
        (("EVALSHA", "sha", 2, "k", "l", "x"), "k"),
        (("EVAL", "return 1", 0), None),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, b"BLOCK", 5, b"STREAMS", "k", ">"), "k"),
        (("XREAD", "streams", "k", "0"), "k"),
        (("XGROUP CREATE", "k", "g", "0"), "k"),
        (("XINFO", "CONSUMERS", "k", "g"), "k"),
        (("PUBSUB", "SHARDNUMSUB", "k"), "k"),
        (("PUBSUB NUMSUB", "k"), None),
        (("SPUBLISH", "k", "x"), "k"),
        (("PUBLISH", "k", "x"), None),
        (("SCRIPT LOAD", "return 1"), None),
        (("TIME",), None),
        (("ping",), None),
    ],
)
def test_the_first_key_of_a_command(command: tuple[Any, ...], key: str | bytes | None) -> None:
    assert key_of(command) == key


def test_keys_with_one_tag_share_a_slot() -> None:
    assert slot_of("deltafan:{7}:job:7-a") == slot_of(b"deltafan:{7}:live:7-a") == slot_of("7")


class Nodes:
    """What each node would answer to CLUSTER SLOTS; one that is not here is away."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def read(self, node: Node) -> Any:
        self.asked.append(node[0])
        if node[0] not in self.answers:
            raise RedisConnectionError("away")
        return self.answers[node[0]]


def _row(first: int, last: int, node: Node) -> list[Any]:
    return [first, last, [node[0].encode(), node[1], b"id", []]]


async def test_the_map_is_read_from_the_first_node_that_answers() -> None:
    nodes = Nodes(b=[_row(0, 8000, B), _row(8001, 16383, C)])
    slots = SlotMap([A, B], nodes.read)
    assert (await slots.node(8000), await slots.node(8001)) == (B, C)
    assert nodes.asked == ["a", "b"]
    assert slots.primaries == [B, C]


async def test_a_node_that_does_not_know_its_own_name_is_called_as_it_was_asked() -> None:
    nodes = Nodes(a=[[0, 16383, [b"", 7, b"id", []]]])
    assert await SlotMap([A], nodes.read).node(5) == ("a", 7)


async def test_a_redirection_changes_one_slot_without_asking_anybody() -> None:
    nodes = Nodes(a=[_row(0, 16383, A)])
    slots = SlotMap([A], nodes.read)
    await slots.node(1)
    slots.moved(1, B)
    assert (await slots.node(1), await slots.node(2)) == (B, A)
    assert nodes.asked == ["a"]


async def test_after_a_failure_the_other_nodes_are_asked_first() -> None:
    nodes = Nodes(a=[_row(0, 8000, A), _row(8001, 16383, B)], b=[_row(0, 16383, B)])
    slots = SlotMap([A, B], nodes.read)
    await slots.node(1)
    del nodes.answers["a"]
    slots.failed(A)
    await slots.refresh()
    assert nodes.asked == ["a", "b"]
    assert await slots.node(1) == B


async def test_a_slot_that_nobody_serves_is_an_outage_of_that_slot_only() -> None:
    slots = SlotMap([A], Nodes(a=[_row(0, 8000, A)]).read)
    assert await slots.node(5) == A
    with pytest.raises(ClusterDownError):
        await slots.node(9000)


async def test_with_every_node_away_the_error_says_so() -> None:
    with pytest.raises(RedisConnectionError):
        await SlotMap([A, B], Nodes().read).node(5)
