"""The provider as a running server, in a test's own loop or for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from deltafan.devserver.provider.app import JOURNAL, create_app
from deltafan.devserver.provider.journal import Journal, RequestRecord
from deltafan.devserver.provider.script import Script
from deltafan.errors import ConfigurationError

MAX_HEADER = 64 << 10
"""Bytes of one header: a scripted text may be one."""

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Provider:
    """A running provider."""

    base_url: str
    """Ends in `/v1`, as an OpenAI client wants it."""
    journal: Journal

    @property
    def requests(self) -> list[RequestRecord]:
        """The most recent requests, oldest first."""
        return self.journal.records

    async def until(self, predicate: Callable[[list[RequestRecord]], bool], timeout: float = 10.0) -> None:
        """Waits for the requests to fulfil the predicate.

        :raises TimeoutError: they do not within `timeout` seconds.
        """
        await self.journal.until(predicate, timeout)


@asynccontextmanager
async def running(script: Script, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Provider]:
    """Runs a provider in this event loop; port 0 takes a free one. Answers that still run at the end are cut off.

    :raises ConfigurationError: the address cannot be bound.
    """
    app = create_app(script)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, max_field_size=MAX_HEADER, max_line_size=MAX_HEADER
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"the provider cannot listen on {host}:{port}: {reason}") from None
        bound = int(runner.addresses[0][1])
        name = _WILDCARDS.get(host, host)
        yield Provider(f"http://{f'[{name}]' if ':' in name else name}:{bound}/v1", app[JOURNAL])
    finally:
        await runner.cleanup()


async def serve(script: Script, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serves until it is cancelled. `ready` is called once with the base URL.

    :raises ConfigurationError: the address cannot be bound.
    """
    async with running(script, host, port) as provider:
        ready(provider.base_url)
        await asyncio.Event().wait()
