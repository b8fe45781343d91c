"""Connections to Redis and the cancellation of who uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deltafan.broker.connections import Connections
from deltafan.settings import RedisSettings


async def test_a_cancellation_that_comes_as_the_bytes_go_is_heeded(redis_settings: RedisSettings) -> None:
    async with Connections(redis_settings) as connections:
        reached_the_end = False

        async def use() -> None:
            nonlocal reached_the_end
            connection: Any = await connections.commands.connection_pool.get_connection()
            send = connection._send_packed_command

            async def send_and_cancel(command: Any) -> None:
                await send(command)
                user.cancel()

            connection._send_packed_command = send_and_cancel
            try:
                await connection.send_command("PING")
                reached_the_end = True
            finally:
                await connections.commands.connection_pool.release(connection)

        user = asyncio.create_task(use())
        with pytest.raises(asyncio.CancelledError):
            await user
        assert not reached_the_end
        assert await connections.commands.execute_command("ECHO", "still right") == b"still right"
