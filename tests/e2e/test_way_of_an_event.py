"""The whole way of an event, from enqueue to followers."""

from __future__ import annotations

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider
from tests.conftest import StartWorker


async def test_a_prompt_streams_to_its_follower(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> None:
    await start_worker()
    job = await queue.enqueue(model="gpt-5", prompt="hello", metadata={"user": 7})
    events = [event async for event in job.events()]
    print([(e.type, str(e.id)) for e in events])
    result = await job.result(timeout=5)
    print(result)
    print(await job.status())
    assert result.text == provider.requests[-1].text
