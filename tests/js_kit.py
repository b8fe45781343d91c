"""Node scripts as parts of tests: their packages are installed, they run with a time limit, they speak JSON lines."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

JS = Path(__file__).parent / "js"
NODE, NPM = shutil.which("node"), shutil.which("npm")
INSTALL_SECONDS = 50
LIMIT = 1 << 20
"""Bytes of one line of a script's output."""

needs_node = pytest.mark.skipif(NODE is None or NPM is None, reason="needs node and npm on the PATH")

Message = dict[str, Any]


def ensure_node_modules() -> Path:
    """Installs what `tests/js/package-lock.json` names, once for all test processes; answers the folder `tests/js`.

    :raises AssertionError: npm failed; the message has what it said.
    """
    stamp = JS / "node_modules" / ".installed-from"
    with (JS / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = lock.read()
        if not stamp.is_file() or stamp.read_bytes() != wanted:
            command = [NPM or "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            if done.returncode:
                raise AssertionError(f"npm ci failed: {done.stderr}")
            stamp.write_bytes(wanted)
    return JS


@dataclass
class Script:
    """A Node script that runs. Its lines of JSON come in order; lines of JSON can be sent to its standard input."""

    process: asyncio.subprocess.Process
    said: list[Message] = field(default_factory=list)
    """What it has said so far."""
    _read: int = 0

    async def until(self, predicate: Callable[[Message], bool], timeout: float = 20.0) -> Message:
        """The next message, of those not yet returned or passed over, that fulfils the predicate.

        :raises TimeoutError: none within `timeout` seconds.
        :raises AssertionError: the script ended before.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    while self._read < len(self.said):
                        self._read += 1
                        if predicate(self.said[self._read - 1]):
                            return self.said[self._read - 1]
                    if not await self._line():
                        raise AssertionError(f"the script ended; it said {self.said}; {await self._stderr()}")
        except TimeoutError:
            raise TimeoutError(f"not said within {timeout:g} s; the script said {self.said}") from None

    async def tell(self, message: Message) -> None:
        """Sends one line of JSON to the script."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def ended(self, timeout: float = 20.0) -> list[Message]:
        """Waits for its end and gives all that it said.

        :raises AssertionError: it ended with an exit code other than 0.
        """
        async with asyncio.timeout(timeout):
            while await self._line():
                pass
            code = await self.process.wait()
        if code:
            raise AssertionError(f"the script ended with {code}; it said {self.said}; {await self._stderr()}")
        return self.said

    async def _line(self) -> bool:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if line.strip():
            self.said.append(json.loads(line))
        return bool(line)

    async def _stderr(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode(errors="replace")


@asynccontextmanager
async def script(path: str, *arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Script]:
    """Runs `tests/js/<path>` in Node, in a process group of its own, which is killed at the end."""
    folder = await asyncio.to_thread(ensure_node_modules)
    process = await asyncio.create_subprocess_exec(
        NODE or "node",
        str(folder / path),
        *arguments,
        cwd=folder,
        env=os.environ | (env or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LIMIT,
        start_new_session=True,
    )
    try:
        yield Script(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()
