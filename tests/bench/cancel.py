"""How long after a cancel the provider sees its connection closed, with 200 streams on one worker. The promise: 100 ms.

Beside it what the machine itself takes for a message through Redis that closes a TCP connection: a busy machine is
slow, not wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import Redis

from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.child import Child
from deltafan.devserver.provider import Provider, Script, Text, running
from deltafan.devserver.valkey import EmbeddedValkey
from tests.bench.report import Row

STREAMS: Final = 200
_CHANNEL: Final = "bounce"


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that so large a share of all does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


@asynccontextmanager
async def bouncing(redis: Redis) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """What makes a round trip: publish, receive, close a connection, see it closed. Each call gives its seconds."""
    closed: asyncio.Queue[float] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        closed.put_nowait(time.time())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with redis.pubsub() as pubsub, server:
        await pubsub.subscribe(_CHANNEL)
        await pubsub.get_message(timeout=5.0)

        async def bounce() -> float:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            began = time.time()
            await redis.publish(_CHANNEL, b"close")
            while await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0) is None:
                pass
            writer.close()
            return await closed.get() - began

        yield bounce


async def cancel_all(provider: Provider, jobs: Sequence[tuple[str, AsyncJob]]) -> list[float]:
    """Cancel streaming jobs, one after another. Gives the seconds from each cancel to its connection's end.

    :param jobs: by the key that each has given the provider.
    """
    took: list[float] = []
    for key, job in jobs:
        (record,) = [r for r in provider.requests if r.key.endswith(key)]
        began = time.time()
        await job.cancel()
        await provider.until(lambda _, record=record: record.ended is not None, timeout=30.0)  # type: ignore[misc]
        took.append((record.ended or began) - began)
    return took


async def measure() -> list[Row]:
    async with (
        EmbeddedValkey() as valkey,
        running(Script(source=Text("All streams run to the sea. " * 400), rate=5)) as provider,
        AsyncQueue(valkey.url) as queue,
        Child(
            ["worker", "--concurrency", str(STREAMS)],
            {
                "REDIS_URL": valkey.url,
                "OPENAI_BASE_URL": provider.base_url,
                "OPENAI_API_KEY": "sk-bench-0123456789",
                "DELTAFAN_LOG_LEVEL": "error",
            },
        ) as child,
    ):
        await child.ready()
        jobs: list[tuple[str, AsyncJob]] = []
        for place in range(STREAMS):
            key = f"bench-{place}."
            params = {"metadata": {"key": key}}
            jobs.append((key, await queue.enqueue(model="gpt-5-mini", prompt=key, params=params)))
        await provider.until(lambda found: sum(r.chunks > 1 for r in found) == STREAMS, timeout=60.0)
        async with bouncing(queue.connections.commands) as bounce:
            least = [await bounce() for _ in range(STREAMS)]
        took = await cancel_all(provider, jobs)
    how = f"{STREAMS} cancels among as many streams; promised: 100 ms"
    alone = "a message through Redis that closes a connection"
    return [
        Row(f"cancel to closed provider stream, {name}", percentile(took, share) * 1000, "ms", None, how)
        for name, share in (("median", 0.5), ("p99", 0.99))
    ] + [Row("the machine alone, p99", percentile(least, 0.99) * 1000, "ms", None, alone)]
