"""The supervisor: restarts what dies or is stuck, gives up on what cannot start, drains with a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, ToolCall, running
from deltafan.engine.supervised import NO_STACK
from deltafan.engine.supervisor import START_TRIES, Supervisor
from deltafan.events import TextDelta
from deltafan.lifeline import STUCK_MIN, stuck_after
from deltafan.telemetry.hooks import Signal
from tests.e2e.cli_kit import DEVNULL, MARK, PIPE, all_ended, end_of, environment, line, marked, new_mark, running_cli
from tests.e2e.test_cli_servers import worker_env
from tests.oracle import check_whole

PATIENT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); sys.stdin.read()"


class Watched:
    """A supervisor of small programs, and what it told."""

    def __init__(self, program: str, count: int, patience: float = 10.0, lease: float = 10.0) -> None:
        self.told: list[Signal] = []
        self._news = asyncio.Event()
        self.supervisor = Supervisor(
            [sys.executable, "-c", program],
            count,
            environment=dict(os.environ),
            patience=patience,
            lease=lease,
            hook=self._hook,
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
    assert w.named("supervisor.gave_up")[0].fields == {"why": "exit code 7", "tried": "5 times in a row"}


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
    assert w.named("supervisor.overdue")[0].fields["seconds"] == 0.3


BEATING = """
import asyncio, re, time
from deltafan.lifeline import Lifeline

def hangs_here():
    {how}

async def main():
    Lifeline(supervised=True).beat(0.3)
    await asyncio.sleep(0.2)
    hangs_here()
    await asyncio.sleep(3600)

asyncio.run(main())
"""
STOPS = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
SLEEPS, COMPUTES = "time.sleep(3600)", "re.match(r'(a+)+$', 'a' * 60 + 'b')"


@pytest.mark.parametrize("how", [SLEEPS, COMPUTES], ids=["in a call that waits", "in one that lets no thread run"])
async def test_a_child_whose_loop_hangs_is_killed_restarted_and_its_stack_told(how: str) -> None:
    w = Watched(BEATING.format(how=how), 1, lease=0.3)
    running = asyncio.create_task(w.supervisor.run())
    await w.until(lambda _: len(w.named("supervisor.started")) == 2)
    (stuck,) = w.named("supervisor.stuck")
    assert stuck.fields["pid"] == w.named("supervisor.started")[0].fields["pid"]
    assert stuck.fields["silent"] == STUCK_MIN
    assert "in hangs_here" in stuck.fields["stack"]
    assert w.named("supervisor.child_ended")[0].fields["why"] == "killed by SIGKILL"
    w.supervisor.abandon()
    assert await running == 0


async def test_a_child_that_was_stopped_is_killed_and_restarted(tmp_path: Path) -> None:
    fifo = tmp_path / "beats"
    os.mkfifo(fifo)
    w = Watched(BEATING.format(how=f"open({str(fifo)!r}, 'wb').close()"), 1, lease=0.3)
    running = asyncio.create_task(w.supervisor.run())
    await w.until(lambda _: bool(w.named("supervisor.started")))
    pid = w.named("supervisor.started")[0].fields["pid"]
    await asyncio.to_thread(fifo.read_bytes)  # ends when it has begun to beat
    os.kill(pid, signal.SIGSTOP)
    await w.until(lambda _: len(w.named("supervisor.started")) == 2)
    assert w.named("supervisor.stuck")[0].fields["stack"] == NO_STACK
    w.supervisor.abandon()
    assert await running == 0


@pytest.mark.parametrize(("lease", "seconds"), [(1.0, 3.0), (3.0, 4.0), (10.0, 40 / 3)])
def test_a_child_is_stuck_when_redis_has_given_its_jobs_up(lease: float, seconds: float) -> None:
    assert stuck_after(lease) == pytest.approx(seconds)


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


BLOCKING_TOOL = """
import sys, time
from pathlib import Path
from deltafan import run_worker, tool

async def blocks() -> str:
    "An operator's mistake: it waits without awaiting."
    calls = Path(sys.argv[1])
    with calls.open("a") as file:
        file.write("called;")
    if calls.read_text().count("called") == 1:
        time.sleep(3600)
    return "unblocked"

def ready(name):
    print("ready", flush=True)

sys.exit(run_worker(tools=[tool(blocks)], processes=2, lease=1, reap_interval=0.2, ready=ready))
"""


async def test_a_tool_that_blocks_the_loop_costs_its_process_and_another_takes_the_job_over(
    redis_url: str, queue: AsyncQueue, tmp_path: Path
) -> None:
    calls, program = tmp_path / "calls", tmp_path / "main.py"
    program.write_text(BLOCKING_TOOL)
    async with running(Script(tool_calls=(ToolCall("blocks"),))) as calling:
        env = environment(**worker_env(redis_url, calling))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), str(calls)), stdout=PIPE, stderr=PIPE, env=env
        )
        try:
            assert process.stdout is not None
            for _ in range(2):
                assert await process.stdout.readline() == b"ready\n"
            job = await queue.enqueue(model="gpt-5", prompt="x", tools=["blocks"])
            async with asyncio.timeout(30):
                events = [event async for event in job.events()]
                check_whole(events)
                assert await process.stdout.readline() == b"ready\n"
        finally:
            process.terminate()
            ended = await end_of(process)
    status = await job.status()
    assert (status.state, status.attempt, status.failures) == ("done", 2, 1)
    assert [error["code"] for error in status.attempt_errors] == ["worker_lost"]
    (stuck,) = [
        entry for text in ended.err.splitlines() if (entry := orjson.loads(text))["event"] == "supervisor.stuck"
    ]
    assert "in blocks" in stuck["stack"]
    assert ended.code == 0


async def test_children_end_with_a_supervisor_that_is_killed(redis_url: str, provider: Provider) -> None:
    mark = new_mark()
    async with running_cli(
        "worker", "--processes", "2", "--json", **worker_env(redis_url, provider, **{MARK: mark})
    ) as p:
        await line(p)
        p.kill()
        await all_ended(mark)
        assert p.stderr is not None
        lines = [orjson.loads(text) for text in (await p.stderr.read()).splitlines()]
    pids = {entry["pid"] for entry in lines if entry["event"] == "supervisor.started"}
    let_go = [entry for entry in lines if entry["event"] == "worker.let_go"]
    assert {entry["pid"] for entry in let_go} <= pids
    assert {entry["why"] for entry in let_go} == {"the supervisor has ended"}


ORPHANING = """
import asyncio, os, sys
from deltafan.engine.supervisor import Supervisor
from deltafan.telemetry.hooks import silent

command = [sys.executable, "-c", {child!r}]
supervisor = Supervisor(command, 1, environment=dict(os.environ), patience=60, lease=60, hook=silent)
asyncio.run(supervisor.run())
"""


@pytest.mark.parametrize("how", [SLEEPS, COMPUTES, STOPS], ids=["waits", "computes", "is stopped"])
async def test_a_stuck_child_ends_with_a_supervisor_that_is_killed(tmp_path: Path, how: str) -> None:
    fifo, mark = tmp_path / "hangs", new_mark()
    os.mkfifo(fifo)
    program = ORPHANING.format(child=BEATING.format(how=f"open({str(fifo)!r}, 'wb').close(); {how}"))
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), env=environment(**{MARK: mark}), stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        await asyncio.to_thread(fifo.read_bytes)  # ends when the child is about to hang
        assert len(marked(mark)) == 2
    finally:
        parent.kill()
        await parent.wait()
    await all_ended(mark)
