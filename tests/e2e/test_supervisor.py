"""The supervisor: restarts what dies, gives up on what cannot start, drains with a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider
from deltafan.engine.supervisor import START_TRIES, Supervisor
from deltafan.events import TextDelta
from deltafan.telemetry.hooks import Signal
from tests.e2e.cli_kit import MARK, all_ended, end_of, line, new_mark, running_cli
from tests.e2e.test_cli_servers import worker_env
from tests.oracle import check_whole

PATIENT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); sys.stdin.read()"


class Watched:
    """A supervisor of small programs, and what it told."""

    def __init__(self, program: str, count: int, patience: float = 10.0) -> None:
        self.told: list[Signal] = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(
            [sys.executable, "-c", program], count, environment=dict(os.environ), patience=patience, hook=self._hook
        )

    def _hook(self, told: Signal) -> None:
        self.told.append(told)
        self._news.set()

    async def until(self, condition: Callable[[list[Signal]], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition(self.told):
                self._news.clear()
                await self._news.wait()

    def named(self, name: str) -> list[Signal]:
        return [told for told in self.told if told.name == name]


async def test_a_killed_child_is_restarted_and_the_reason_told() -> None:
    w = Watched(PATIENT, 2)
    running = asyncio.create_task(w.supervisor.run())
    await w.until(lambda _: len(w.named("supervisor.started")) == 2)
    killed = w.named("supervisor.started")[0].fields["pid"]
    os.kill(killed, signal.SIGKILL)
    await w.until(lambda _: len(w.named("supervisor.started")) == 3)
    (ended,) = w.named("supervisor.child_ended")
    assert (ended.fields["pid"], ended.fields["why"]) == (killed, "killed by SIGKILL")
    w.supervisor.abandon()
    assert await running == 0


async def test_children_that_keep_failing_at_start_are_given_up() -> None:
    w = Watched("import sys; sys.exit(7)", 1)
    assert await w.supervisor.run() == 1
    assert len(w.named("supervisor.started")) == START_TRIES
    assert w.named("supervisor.gave_up")[0].fields["why"] == "exit code 7"


async def test_wrong_settings_are_not_tried_again_and_end_all() -> None:
    w = Watched("import sys; sys.exit(2)", 3)
    assert await w.supervisor.run() == 2
    assert len(w.named("supervisor.started")) == 3


DEAF = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.close(os.open({fifo!r}, os.O_WRONLY))
while True:
    signal.pause()
"""


async def test_a_child_that_does_not_heed_is_killed_after_its_time(tmp_path: Path) -> None:
    fifo = tmp_path / "deaf"
    os.mkfifo(fifo)
    w = Watched(DEAF.format(fifo=str(fifo)), 1, patience=0.3)
    running = asyncio.create_task(w.supervisor.run())
    await asyncio.to_thread(fifo.read_bytes)  # ends when the child has become deaf
    w.supervisor.terminate()
    assert await running == 0
    assert w.named("supervisor.child_ended")[0].fields["why"] == "killed by SIGKILL"


async def test_a_job_of_a_killed_child_is_taken_over_and_the_child_restarted(
    redis_url: str, queue: AsyncQueue, provider: Provider
) -> None:
    mark = new_mark()
    env = worker_env(redis_url, provider, DELTAFAN_REAP_INTERVAL="0.3", **{MARK: mark})
    async with running_cli("worker", "--processes", "2", "--json", **env) as parent:
        await line(parent)
        await line(parent)
        faulty = {"metadata": {"rate": "100", "fault": "stall=20*1"}}
        job = await queue.enqueue(model="gpt-5", prompt="x", params=faulty)
        events = []
        async for event in job.events():
            events.append(event)
            if isinstance(event, TextDelta) and event.id is not None and event.id.attempt == 1 and len(events) == 2:
                owner = (await job.status()).worker
                assert owner is not None
                os.kill(int(owner.split("-")[-2]), signal.SIGKILL)
        check_whole(events, provider.requests[-1].text)
        assert (await job.status()).attempt == 2
        assert (await line(parent))["ready"] is True
        parent.send_signal(signal.SIGTERM)
        ended = await end_of(parent)
    assert ended.code == 0
    assert "killed by SIGKILL" in ended.err
    await all_ended(mark)


async def test_children_end_with_a_supervisor_that_is_killed(redis_url: str, provider: Provider) -> None:
    mark = new_mark()
    async with running_cli(
        "worker", "--processes", "2", "--json", **worker_env(redis_url, provider, **{MARK: mark})
    ) as p:
        await line(p)
        p.kill()
        await all_ended(mark)
