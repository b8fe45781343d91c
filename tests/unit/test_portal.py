"""The background loop: in forked children, in its own thread, and at the end of the process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator

from deltafan.portal import Portal

PROGRAM = """
import asyncio, os, sys, warnings
from deltafan.errors import DeltafanError
from deltafan.portal import portal

async def numbers():
    for number in range(1000):
        yield number
        await asyncio.sleep(0)

"""


def python(body: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, for forks and ends of processes."""
    code = PROGRAM + textwrap.dedent(body)
    command = [sys.executable, "-X", "dev", "-W", "default", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_forked_child_ends_while_a_stream_of_its_parent_is_open() -> None:
    ended = python("""
        numbers_of_parent = portal().iterate(numbers())
        assert next(numbers_of_parent) == 0
        child = os.fork()
        if child == 0:
            print(next(portal().iterate(numbers())), flush=True)
            try:
                next(numbers_of_parent)
            except DeltafanError as error:
                print(error, flush=True)
            del numbers_of_parent
            sys.exit(0)
        print(os.waitpid(child, 0)[1], next(numbers_of_parent))
        numbers_of_parent.close()
    """)
    assert ended.returncode == 0, ended.stderr
    fork = "a stream that was opened before a fork cannot be used after it: open another"
    assert ended.stdout.splitlines() == ["0", fork, "0 1"]


def test_after_its_end_the_portal_refuses_and_leaves_no_coroutine_unawaited() -> None:
    ended = python("""
        import atexit

        async def answer():
            return 42

        def late():
            try:
                portal().run(answer())
            except DeltafanError as error:
                print(error)
            left.close()
            portal().close(answer())

        atexit.register(late)  # runs after the portal's own end, which is registered later
        left = portal().iterate(numbers())
        print(next(left), portal().run(answer()))
    """)
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == ["0 42", "the process is ending, and its connections are closed already"]
    assert "never awaited" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_iteration_that_is_collected_in_the_portals_own_thread_is_closed_there() -> None:
    closed = threading.Event()

    async def source() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def collect() -> None:
        gc.collect()

    portal = Portal()
    try:
        numbers = portal.iterate(source())
        assert next(numbers) == 1
        cycle: list[object] = [numbers]
        cycle.append(cycle)
        del numbers, cycle
        portal.run(collect())  # warnings are errors: what the collector cannot raise would fail the test
        assert closed.wait(10)
    finally:
        portal.shut_down()
