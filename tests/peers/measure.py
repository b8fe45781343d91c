"""What an import and a chunk cost, beside litellm and openai: `.venv-peers/bin/python -m tests.peers.measure`."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

IMPORTS = ("pass", "import deltafan", "from deltafan import OpenAIClient", "import openai", "import litellm")
PROCESSES = 5
CHUNKS = 2000
ROUNDS = 5
_CHILD = """
import json, time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
kibibytes = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([took, int(kibibytes) / 1024]))
"""


def imported(statement: str) -> tuple[float, float]:
    """Seconds of the statement, and MiB of the whole process at its most; medians of fresh processes."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    code = _CHILD.format(statement=statement)
    runs = []
    for _ in range(PROCESSES):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def served() -> str:
    """The base URL of a provider in a thread of its own."""
    from deltafan.devserver.provider import Script, Text, running

    # Numbered, because litellm breaks an answer off that repeats itself.
    text = "".join(f"{number:04} " for number in range(CHUNKS))
    found: list[str] = []
    ready = threading.Event()

    async def serve() -> None:
        async with running(Script(source=Text(text), chunk_size=5)) as provider:
            found.append(provider.base_url)
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    ready.wait()
    return found[0]


async def streamed(acompletion: Callable[..., Any], url: str) -> float:
    """Microseconds of this thread's processor, a chunk."""
    arguments = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "api_key": "sk-none"}
    began, chunks = time.thread_time(), 0
    async for _ in await acompletion(**arguments, api_base=url, stream=True):
        chunks += 1
    assert chunks >= CHUNKS
    return (time.thread_time() - began) / CHUNKS * 1e6


async def compared(url: str) -> tuple[float, float]:
    import litellm

    import deltafan

    litellm.suppress_debug_info = True
    times: dict[Any, list[float]] = {litellm: [], deltafan: []}
    for _ in range(ROUNDS + 1):
        for library in times:
            times[library].append(await streamed(library.acompletion, url))
    theirs, ours = (statistics.median(each[1:]) for each in times.values())  # the first warms up
    return theirs, ours


def main() -> None:
    for statement in IMPORTS:
        seconds, mebibytes = imported(statement)
        print(f"{statement:40} {seconds * 1000:8.0f} ms {mebibytes:8.0f} MiB")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    theirs, ours = asyncio.run(compared(served()))
    print(f"a chunk of {CHUNKS}: litellm {theirs:.1f} µs, deltafan {ours:.1f} µs: {theirs / ours:.1f} times as long")


if __name__ == "__main__":
    main()
