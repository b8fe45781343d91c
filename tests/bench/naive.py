"""What one writes first: the SDK's stream, and for each chunk an awaited XADD and an awaited PUBLISH.

Run as a process: `python -m tests.bench.naive STREAMS`, with REDIS_URL, OPENAI_BASE_URL and OPENAI_API_KEY set.
"""

from __future__ import annotations

import asyncio
import os
import sys

import openai
import orjson
import redis.asyncio
import uvloop


async def stream(client: openai.AsyncOpenAI, server: redis.asyncio.Redis, job: str) -> None:
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": job}], stream=True, stream_options={"include_usage": True}
    )
    seq = 0
    async for chunk in answer:
        if chunk.choices and chunk.choices[0].delta.content:
            data = orjson.dumps({"job": job, "seq": seq, "type": "text_delta", "text": chunk.choices[0].delta.content})
            await server.xadd(f"naive:log:{job}", {"e": data})
            await server.publish(f"naive:live:{job}", data)
            seq += 1


async def main(streams: int) -> None:
    async with (
        openai.AsyncOpenAI(http_client=openai.DefaultAioHttpClient()) as client,
        redis.asyncio.Redis.from_url(os.environ["REDIS_URL"], max_connections=2 * streams) as server,
    ):
        sys.stdout.write('{"ready": "yes"}\n')
        sys.stdout.flush()
        await asyncio.gather(*(stream(client, server, str(n)) for n in range(streams)))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
