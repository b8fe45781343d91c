"""Waiting for processes that are not our children."""

from __future__ import annotations

import asyncio


async def ended(process: int, timeout: float = 10.0) -> None:
    """Waits for the end of the process that a `pidfd` stands for (Linux)."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, over.set)
    try:
        async with asyncio.timeout(timeout):
            await over.wait()
    finally:
        loop.remove_reader(process)
