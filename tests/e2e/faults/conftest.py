"""A rig for each test: a Redis of its own, real processes, proxies between them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deltafan.chaos.rig import Rig
from deltafan.devserver.valkey import EmbeddedValkey

REDIS_BINARY = Path(found) if (found := os.environ.get("DELTAFAN_TEST_REDIS")) else None
"""Another server than the embedded one, such as Debian's redis-server."""


@pytest_asyncio.fixture
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """On a server that keeps an append-only file only where the test asks for it, by `@pytest.mark.server(…)`."""
    wanted = request.node.get_closest_marker("server")
    async with (
        EmbeddedValkey(binary=REDIS_BINARY, **(wanted.kwargs if wanted else {})) as server,
        Rig.opened(tmp_path, server) as opened,
    ):
        yield opened
