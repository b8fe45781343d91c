"""Five hundred clients of a relay vanish without a FIN: a program for a network namespace of its own.

    unshare --user --map-root-user --net python -m tests.e2e.faults.vanishing

Their address is taken away from the machine. Nothing reaches them from then on, and nothing says so.
"""

from __future__ import annotations

import asyncio
import subprocess

import aiohttp

from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.rig import eventually
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.relay import client
from deltafan.settings import RedisSettings
from tests.e2e.relay_kit import SPEC, hand_worker, running_relay, streaming, text_of

CLIENTS = 500
ADDRESS = "10.99.0.2"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


async def main() -> None:
    client.VANISHED_SECONDS = 2.0
    _ip("link", "set", "lo", "up")
    _ip("addr", "add", f"{ADDRESS}/32", "dev", "lo")
    async with (
        EmbeddedValkey() as valkey,
        AsyncQueue(RedisSettings(url=valkey.url)) as queue,
        hand_worker(RedisSettings(url=valkey.url)) as worker,
        running_relay(queue, heartbeat=0.5) as relay,
        aiohttp.ClientSession() as http,
    ):
        job = await queue.enqueue(SPEC)
        work = await worker.take()
        async with streaming(http, relay.url, job.id) as healthy:

            async def streams() -> int:
                async with http.get(f"{relay.url}/v1/stats") as answer:
                    return int((await answer.json())["streams"]["open"])

            port = int(relay.url.rpartition(":")[2])
            connections = [
                await asyncio.open_connection("127.0.0.1", port, local_addr=(ADDRESS, 0)) for _ in range(CLIENTS)
            ]
            for reader, writer in connections:
                writer.write(f"GET /v1/jobs/{job.id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                await reader.readuntil(b"event: meta")
            assert await streams() == CLIENTS + 1
            _ip("addr", "del", f"{ADDRESS}/32", "dev", "lo")
            await work.say("heard")

            async def only_the_healthy_one() -> bool:
                return await streams() == 1

            await healthy.until("1-1")
            await eventually(only_the_healthy_one, timeout=30)
            await work.finish()
            assert text_of(await healthy.rest()) == ""
            for _, writer in connections:
                writer.transport.abort()
    print("reaped")


if __name__ == "__main__":
    asyncio.run(main())
