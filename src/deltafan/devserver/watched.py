"""One run of a Valkey or Redis server under the watchdog: from its start until it answers, and to its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deltafan.devserver import watchdog
from deltafan.errors import BrokerUnavailable, ConfigurationError

HOST = "127.0.0.1"
PID_FILE = "valkey.pid"
LOG_FILE = "valkey.log"
START_SECONDS = 15.0
"""How long a start may take, loading an append-only file included."""
STOP_SECONDS = watchdog.GRACE_SECONDS + 5.0
"""How long the watchdog may take to end, after which it is killed itself."""

_ANSWER_SECONDS = 0.5
_LOG_LINES = 8
_PROCESS_ID = re.compile(rb"^process_id:([0-9]+)\r$", re.MULTILINE)
_PORT_TAKEN = "Address already in use"


class PortTakenError(Exception):
    """Somebody else has the port; holds the end of the server's log."""


class WatchedServer:
    """One run of a server under its watchdog. Closing our end of the pipe, or dying, ends it.

    :param temporary: the directory is ours to remove; should we be killed, the watchdog does.
    """

    def __init__(self, command: Sequence[str], directory: Path, *, temporary: bool = False) -> None:
        self.pid = 0
        """The server's, once it is ready."""
        self._pid_file = directory / PID_FILE
        self._log_file = directory / LOG_FILE
        try:
            self._pid_file.unlink(missing_ok=True)
            self._log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
            log = self._log_file.open("ab")
        except OSError as error:
            raise ConfigurationError(f"dir: {directory} cannot be written: {error.strerror}") from None
        remove = ["--remove", str(directory)] if temporary else []
        watched, self._lifeline = os.pipe()
        try:
            # By its path, isolated and without site packages: it starts in a few milliseconds and imports none of ours.
            # In a session of its own: Ctrl-C in a terminal is for us, and the server goes last.
            self._process = subprocess.Popen(  # noqa: S603 - the caller's command
                [sys.executable, "-I", "-S", watchdog.__file__, *remove, "--", *command],
                stdin=watched,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(watched)
            log.close()

    async def ready(self, port: int) -> None:
        """Returns when the server answers; else ends it.

        :raises PortTakenError: somebody else has the port.
        :raises BrokerUnavailable: it ended, or it did not answer in time.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._answers(port):
                    if self._process.poll() is not None:
                        raise self._failure("ended at once")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self.stop()
            raise self._failure(f"did not answer within {START_SECONDS:g} s") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends the server in order; the watchdog kills one that does not heed."""
        self.release()
        await self.wait()

    async def kill(self) -> None:
        """Kills the server itself, if it has not ended already."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await self.wait()
        self.release()

    def release(self) -> None:
        """Closes our end of the pipe, having said that we do it in order."""
        if self._lifeline >= 0:
            with suppress(OSError):  # the watchdog has ended
                os.write(self._lifeline, b".")
            os.close(self._lifeline)
            self._lifeline = -1

    async def wait(self) -> None:
        """Waits for the watchdog to end, which it does after the server."""
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # on Linux the server goes with it
            await asyncio.to_thread(self._process.wait)

    async def _answers(self, port: int) -> bool:
        """Whether the server, and not another one on its port, answers commands."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return False  # not written yet
        if await _serving_pid(port) != pid or self._process.poll() is not None:
            return False
        self.pid = pid
        return True

    def _failure(self, what: str) -> Exception:
        log = self._log()
        lines = "\n".join(log.splitlines()[-_LOG_LINES:])
        message = f"the embedded Valkey {what}; the end of its log:\n{lines}"
        return PortTakenError(message) if _PORT_TAKEN in log else BrokerUnavailable(message)

    def _log(self) -> str:
        with self._log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")


async def _serving_pid(port: int) -> int | None:
    """The process id that the server on a port says it has; None while there is none, or it is still loading."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(b"PING\r\nINFO server\r\n")  # INFO alone would answer while loading
                if await reader.readline() != b"+PONG\r\n":
                    return None
                size = int((await reader.readline())[1:])
                found = _PROCESS_ID.search(await reader.readexactly(size))
                return int(found[1]) if found else None
            finally:
                writer.close()
    except (OSError, EOFError, ValueError):  # TimeoutError is an OSError; the others: it is no such server
        return None
