"""Where a program's own completions can go: a function of its own, and Pusher."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

from deltafan.channels import ENCRYPTED
from deltafan.errors import ConfigurationError
from deltafan.events import Event
from deltafan.settings import PusherSettings
from deltafan.sinks.pump import CANCEL_BUDGET
from deltafan.sinks.pusher import sink as pusher
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.telling import Telling
from deltafan.transcript import Transcript
from deltafan.wiring import load

EventFunction = Callable[[Event], Awaitable[object] | object]
"""Called with each event, in order; an async one is awaited before the next."""


async def stream_to_function(
    events: AsyncGenerator[Event, None], function: EventFunction, telling: Telling
) -> Transcript:
    """As `stream_to_sink`, one event at a time. What the function raises ends the completion.

    :raises CompletionError: it failed; the function has been told by `error` and `done`.
    """

    async def give(event: Event) -> None:
        given = function(event)
        if inspect.isawaitable(given):
            await given

    try:
        async with aclosing(telling.tell(events)) as told:
            async for event in told:
                await give(event)
    except asyncio.CancelledError:
        if telling.transcript.done is None:
            with suppress(Exception):  # its own trouble must not swallow the cancellation
                async with asyncio.timeout(CANCEL_BUDGET):
                    await give(telling.cut_short())
        raise
    if telling.failure is not None:
        raise telling.failure
    return telling.transcript


class PusherSink(pusher.PusherSink):
    """Publishes events on Pusher channels: `async with PusherSink(channel="chat-7") as sink`.

    :param channel: a name, or several: each gets every event.
    :param settings: left out, `PUSHER_APP_ID`, `PUSHER_KEY`, `PUSHER_SECRET`, `PUSHER_CLUSTER` and so on serve.
    :raises ConfigurationError: the credentials are missing or wrong.
    :raises ValidationError: a name that the service would refuse.
    """

    def __init__(
        self, channel: str | Sequence[str], *, settings: PusherSettings | None = None, job_id: str | None = None
    ) -> None:
        settings = settings or load().pusher
        if not settings.configured:
            raise ConfigurationError(
                "Pusher's credentials are missing: set PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET"
            )
        names = (channel,) if isinstance(channel, str) else channel
        if settings.encryption_master_key is None and any(name.startswith(ENCRYPTED) for name in names):
            raise ConfigurationError(f"{ENCRYPTED} channels need a key: set PUSHER_ENCRYPTION_MASTER_KEY")
        self._own = Publisher(settings)
        super().__init__(channel, self._own, job_id=job_id)

    async def aclose(self) -> None:
        await self._own.aclose()
