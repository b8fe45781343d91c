"""Case 16: a cancel ends a job wherever it is, from whatever process, heard or not, and stays."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from deltafan.broker.cancel import CancelOutcome
from deltafan.broker.cluster import beside
from deltafan.broker.keys import GROUP, partition
from deltafan.broker.queue import AsyncJob, AsyncQueue
from deltafan.broker.scripts import CANCEL
from deltafan.chaos.audit import expiry_problems, queue_problems, record_problems
from deltafan.chaos.rig import TEXT, eventually
from deltafan.devserver.provider import Provider, Script, Text, parse_faults, running
from deltafan.devserver.provider.script import ToolCall
from deltafan.llm.tools import tool
from tests.conftest import StartWorker
from tests.oracle import check_whole

LONG = Text(TEXT * 200)


@dataclass
class Scene:
    """A worker that can be started, with a provider, and a job to be cancelled."""

    queue: AsyncQueue
    start_worker: StartWorker
    stack: AsyncExitStack
    providers: list[Provider] = field(default_factory=list)
    tool_ended: asyncio.Event = field(default_factory=asyncio.Event)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def provider(self) -> Provider:
        return self.providers[-1]

    async def worker(self, script: Script, tools: dict[str, Any] | None = None, **settings: Any) -> None:
        self.providers.append(await self.stack.enter_async_context(running(script)))
        await self.start_worker(self.provider, {"tools": tools or {}}, **settings)

    async def job(self, **fields: Any) -> AsyncJob:
        return await self.queue.enqueue(model="m", prompt=f"prompt {next(self.numbers)}", **fields)

    async def reached(self, job: AsyncJob, state: str) -> AsyncJob:
        async def has() -> bool:
            return (await job.status()).state == state

        await eventually(has)
        return job


async def delayed(scene: Scene) -> AsyncJob:
    await scene.worker(Script(source=LONG))
    return await scene.job(delay=3600)


async def waiting_to_be_tried_again(scene: Scene) -> AsyncJob:
    await scene.worker(Script(source=LONG), backoff=3600, backoff_max=3600)
    return await scene.reached(await scene.job(params={"metadata": {"fault": "cut=3"}}), "delayed")


async def queued(scene: Scene) -> AsyncJob:
    job = await scene.job()
    assert (await job.status()).state == "queued"
    return job


async def taken(scene: Scene) -> AsyncJob:
    """A worker has the entry, and has not claimed it."""
    job = await scene.job()
    keys, redis = partition(job.id), scene.queue.connections.commands
    stream = keys.queue("default", "normal")
    await redis.xgroup_create(stream, GROUP, "0")
    await redis.xreadgroup(GROUP, "slow-worker", {stream: ">"})
    await redis.set(keys.worker("slow-worker"), b"{}", ex=600)
    return job


async def claimed(scene: Scene) -> AsyncJob:
    """The provider has been asked, and has said nothing yet."""
    await scene.worker(Script(source=LONG, first_token_delay=600))
    job = await scene.job()
    await scene.provider.until(lambda requests: bool(requests))
    return job


async def streaming(scene: Scene) -> AsyncJob:
    """The next heartbeat is far away: when the message is lost, the next append has to tell."""
    await scene.worker(Script(source=LONG, rate=20), lease=3600)
    job = await scene.job()
    await scene.provider.until(lambda requests: bool(requests) and requests[0].chunks > 3)
    return job


async def in_a_tool(scene: Scene) -> AsyncJob:
    called = asyncio.Event()

    async def waits() -> str:
        """Never ends by itself."""
        called.set()
        try:
            await asyncio.Event().wait()
        finally:
            scene.tool_ended.set()
        return ""

    await scene.worker(Script(tool_calls=(ToolCall("waits"),)), {"waits": tool(waits)})
    job = await scene.job(tools=["waits"])
    await called.wait()
    return job


Arrive = Callable[[Scene], Awaitable[AsyncJob]]


async def heard(queue: AsyncQueue, job: AsyncJob) -> CancelOutcome:
    return await job.cancel()


async def unheard(queue: AsyncQueue, job: AsyncJob) -> CancelOutcome:
    """In one transaction every subscription is killed and the job cancelled: no worker hears of it."""
    keys = partition(job.id)
    redis = await beside(queue.connections.commands, job.channel)
    await redis.script_load(CANCEL.single.lua)
    place = [*keys.of_job(job.id), keys.queue("default", "normal"), keys.delayed("default")]
    place += [keys.deadlines, keys.expiries]
    pipe = redis.pipeline(transaction=True)
    pipe.client_kill_filter(_type="pubsub")
    pipe.evalsha(CANCEL.single.sha, len(place), *place, job.id, "", GROUP, 3600, keys.control)
    killed, (state, _) = await pipe.execute()
    assert killed
    return CancelOutcome(state.decode(), cancelled=True)


async def is_cancelled(queue: AsyncQueue, job: AsyncJob) -> None:
    """Its log is whole and ends as cancelled, its record agrees, and nothing of it waits anywhere."""
    async with asyncio.timeout(30):
        events = [event async for event in job.events()]
    transcript = check_whole(events)
    assert transcript.done is not None
    assert transcript.done.finish_reason == "cancelled"
    assert await record_problems(queue.connections, job.id, transcript) == []
    assert (await job.cancel()).cancelled
    assert await expiry_problems(queue.connections) == []

    async def empty() -> bool:
        return not await queue_problems(queue.connections)

    await eventually(empty)


@pytest.fixture
async def scene(queue: AsyncQueue, start_worker: StartWorker) -> Any:
    async with AsyncExitStack() as stack:
        yield Scene(queue, start_worker, stack)


@pytest.mark.topologies("valkey", "cluster")
@pytest.mark.parametrize("arrive", [delayed, waiting_to_be_tried_again, queued, taken], ids=lambda f: f.__name__)
async def test_a_waiting_job_that_is_cancelled_ends_at_once_and_is_never_asked_of_the_model(
    scene: Scene, arrive: Arrive
) -> None:
    job = await arrive(scene)
    attempts = (await job.status()).attempt
    outcome = await job.cancel()
    assert (outcome.state, outcome.cancelled) == ("cancelled", True)
    await is_cancelled(scene.queue, job)
    await scene.queue.connections.commands.delete(partition(job.id).worker("slow-worker"))
    await scene.worker(Script())
    again = await scene.job()
    async with asyncio.timeout(30):
        await again.result()  # a worker has looked at everything that waits
    assert sum(len(provider.requests) for provider in scene.providers) == attempts + 1
    assert (await job.status()).attempt == max(attempts, 1)
    await is_cancelled(scene.queue, job)


@pytest.mark.topologies("valkey", "cluster", "sentinel")
@pytest.mark.parametrize("cancel", [heard, unheard], ids=["told", "with_the_message_lost"])
@pytest.mark.parametrize("arrive", [claimed, streaming, in_a_tool], ids=lambda f: f.__name__)
async def test_a_running_job_that_is_cancelled_stops_asking_the_model_and_ends_as_cancelled(
    scene: Scene, arrive: Arrive, cancel: Callable[[AsyncQueue, AsyncJob], Awaitable[CancelOutcome]]
) -> None:
    job = await arrive(scene)
    outcome = await cancel(scene.queue, job)
    assert (outcome.state, outcome.cancelled) == ("cancelling", True)
    await is_cancelled(scene.queue, job)
    await scene.provider.until(lambda requests: requests[0].ended is not None)
    assert len(scene.provider.requests) == 1
    assert scene.provider.requests[0].client_closed != (arrive is in_a_tool)
    if arrive is in_a_tool:
        async with asyncio.timeout(10):
            await scene.tool_ended.wait()


@pytest.mark.parametrize(("script", "state"), [(Script(), "done"), (Script(faults=parse_faults("quota")), "failed")])
async def test_a_job_that_has_ended_stays_as_it_is_when_it_is_cancelled(
    scene: Scene, script: Script, state: str
) -> None:
    await scene.worker(script)
    job = await scene.reached(await scene.job(), state)
    before = await job.status(), [event async for event in job.events()]
    outcome = await job.cancel()
    assert (outcome.state, outcome.cancelled) == (state, False)
    assert (await job.status(), [event async for event in job.events()]) == before
