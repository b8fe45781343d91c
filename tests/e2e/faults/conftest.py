"""A rig for each test: a Redis, real processes, proxies between them.

`@pytest.mark.topologies("valkey", "cluster", "sentinel")` has a test run on each of these kinds of Redis; one without
the mark runs on a single Valkey. The Valkey of a rig is its own. A cluster (three primaries with a replica each) and a
pair behind sentinels are shared by the tests of a process; each finds them whole and empty.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from deltafan.chaos.audit import connection_problems
from deltafan.chaos.rig import Rig
from deltafan.chaos.servers import Server
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.sentinel import EmbeddedSentinel
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.settings import RedisSettings
from tests.e2e.faults.topologies_kit import CLUSTER, PARTITIONS, SENTINEL, VALKEY, fresh

REDIS_BINARY = Path(found) if (found := os.environ.get("DELTAFAN_TEST_REDIS")) else None
"""Another server than the embedded one, such as Debian's redis-server."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.definition.get_closest_marker("topologies")
    if wanted is not None:
        metafunc.parametrize("topology", wanted.args, indirect=True)


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> str:
    """The kind of Redis that the test runs on."""
    return str(getattr(request, "param", VALKEY))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(replicas=True, binary=REDIS_BINARY) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_sentinel() -> AsyncIterator[EmbeddedSentinel]:
    async with EmbeddedSentinel(binary=REDIS_BINARY) as sentinel:
        yield sentinel


_SHARED = {VALKEY: "server", CLUSTER: "shared_cluster", SENTINEL: "shared_sentinel"}


@pytest.fixture
def shared_server(topology: str, request: pytest.FixtureRequest) -> Server:
    """The one of this process; it is started when the first test needs it."""
    found: Server = request.getfixturevalue(_SHARED[topology])
    return found


@pytest_asyncio.fixture
async def empty_server(shared_server: Server) -> Server:
    await fresh(shared_server)
    return shared_server


@pytest.fixture
def redis_settings(empty_server: Server, topology: str) -> RedisSettings:
    """For tests in this process: what `queue`, `start_worker` and the rest of them use."""
    return RedisSettings(url=empty_server.url, partitions=PARTITIONS[topology], command_timeout=5.0, probe_interval=2.0)


@pytest.fixture
def rig_server(topology: str, request: pytest.FixtureRequest) -> Server | None:
    return None if topology == VALKEY else request.getfixturevalue(_SHARED[topology])


@pytest_asyncio.fixture
async def rig(
    topology: str, rig_server: Server | None, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Rig]:
    """The Valkey keeps an append-only file only where the test asks for it, by `@pytest.mark.server(…)`."""
    wanted = request.node.get_closest_marker("server")
    async with AsyncExitStack() as stack:
        if rig_server is None:
            own = EmbeddedValkey(binary=REDIS_BINARY, **(wanted.kwargs if wanted else {}))
            rig_server = await stack.enter_async_context(own)
        else:
            await fresh(rig_server)
        before = asyncio.all_tasks()
        async with Rig.opened(tmp_path, rig_server, partitions=PARTITIONS[topology]) as opened:
            yield opened
        assert await _left_behind(opened, before) == []


async def _left_behind(rig: Rig, before: set[asyncio.Task[object]]) -> list[str]:
    """What a rig that has been closed has no business leaving: processes, connections, tasks."""
    left = [f"{program.name} is alive" for program in rig.programs if program.alive]
    if isinstance(rig.backend, EmbeddedValkey) and rig.backend.running:
        with suppress(BrokerUnavailable, ConfigurationError):  # a test may have made it refuse everything
            left += await connection_problems(rig.backend.url, 10.0)
    return left + [str(task) for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
