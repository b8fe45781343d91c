"""A connection that was reset a moment ago is a lost connection, in whatever words the event loop says so."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from deltafan.broker.connections import Connections
from deltafan.settings import RedisSettings


def test_writing_to_a_transport_that_uvloop_has_closed_is_a_lost_connection(redis_url: str) -> None:
    async def write() -> None:
        connections = Connections(RedisSettings(url=redis_url))
        connection = connections.subscription()
        await connection.connect()  # type: ignore[no-untyped-call]
        connection._writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(RedisConnectionError, match="closed just now"):
            await connection.send_packed_command([b"PING\r\n"], check_health=False)
        assert not connection.is_connected
        await connections.aclose()

    uvloop.run(write())
