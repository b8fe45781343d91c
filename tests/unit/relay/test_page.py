"""What the pages' security policy allows, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from deltafan.relay.page import sockets
from deltafan.settings import PusherSettings


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"app_id": ""}, []),
        ({"cluster": "eu"}, ["wss://ws-eu.pusher.com"]),
        ({}, ["wss://ws-mt1.pusher.com"]),
        ({"host": "push.example.org"}, ["wss://push.example.org:443"]),
        ({"host": "127.0.0.1", "port": 6001, "tls": False}, ["ws://127.0.0.1:6001"]),
        ({"host": "::1", "port": 6001, "tls": False}, ["ws://[::1]:6001"]),
    ],
)
def test_sockets_may_be_opened_to_the_configured_pusher_only(settings: dict[str, Any], allowed: list[str]) -> None:
    given = {"app_id": "1", "key": "k", "secret": "s"} | settings
    if not given["app_id"]:
        given = {}
    assert sockets(PusherSettings(**given)) == allowed
