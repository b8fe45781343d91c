"""Time to the first token at an SSE client through the whole pipeline, against a direct call of the SDK."""

from __future__ import annotations

import asyncio
import statistics
import time

import aiohttp
import openai

from tests.bench.parts import parts
from tests.bench.report import Row

ROUNDS = 60


async def measure() -> list[Row]:
    async with parts(rate=0, text_chars=40) as running:
        await running.child("worker")
        _, relay = await running.child("relay", DELTAFAN_PORT="0")
        await asyncio.sleep(2.0)  # a worker loads its price list in the background when it has started
        ours: list[float] = []
        direct: list[float] = []
        async with (
            openai.AsyncOpenAI(
                base_url=running.provider_url, api_key="sk-bench", http_client=openai.DefaultAioHttpClient()
            ) as client,
            aiohttp.ClientSession(relay["url"]) as session,
        ):
            for place in range(ROUNDS + 5):
                one, other = await _pipeline(session), await _direct(client)
                if place >= 5:  # the first ones open connections
                    ours.append(one * 1000)
                    direct.append(other * 1000)
    added = [a - b for a, b in zip(ours, direct, strict=True)]
    how = f"idle, {ROUNDS} rounds: POST /v1/jobs → first text_delta over SSE; peer: the SDK called directly"
    return [
        Row("time to first token", statistics.median(ours), "ms", statistics.median(direct), how),
        Row("added time to first token", statistics.median(added), "ms", None, "the same rounds, pipeline less SDK"),
    ]


async def _pipeline(session: aiohttp.ClientSession) -> float:
    began = time.perf_counter()
    async with session.post("/v1/jobs", json={"model": "m", "prompt": "x"}) as answer:
        url = (await answer.json())["events_url"]
    async with session.get(url, headers={"Accept": "text/event-stream"}) as stream:
        received = b""
        async for data in stream.content.iter_any():
            received += data
            if b"event: text_delta" in received:
                return time.perf_counter() - began
    raise RuntimeError("the stream ended without text")


async def _direct(client: openai.AsyncOpenAI) -> float:
    began = time.perf_counter()
    answer = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True, stream_options={"include_usage": True}
    )
    first = 0.0
    async for chunk in answer:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return first
