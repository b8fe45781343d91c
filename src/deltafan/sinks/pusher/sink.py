"""The Pusher sink of one job."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from deltafan.channels import ENCRYPTED, channel_problem
from deltafan.errors import FieldError, ValidationError
from deltafan.events import Event, EventId
from deltafan.sinks.base import JobInfo, Sink, SinkFactory, Undeliverable
from deltafan.sinks.pusher.messages import Message, limit_of, messages_of
from deltafan.sinks.pusher.publisher import Publisher


class PusherSink:
    """Publishes a job's events on its Pusher channels: the event's type is the name, its wire form the data.

    The first event goes at once. Between two batches there are at least `interval` seconds, because Pusher bills by the
    message; what arrives meanwhile is merged. Events without an id get `1-<n>`.

    :param channels: a name, or several: each gets every event.
    :param job_id: the `job` of events that have none.
    :raises ValidationError: a name that the service would refuse.
    """

    def __init__(self, channels: str | Sequence[str], publisher: Publisher, *, job_id: str | None = None) -> None:
        self.channels = (channels,) if isinstance(channels, str) else tuple(channels)
        if not self.channels:
            raise ValidationError([FieldError("channel", "must name at least one")])
        for name in self.channels:
            if problem := channel_problem(name):
                raise ValidationError([FieldError("channel", f"{name[:200]!r} {problem}")])
        self.job_id = job_id or f"0-{secrets.token_hex(8)}"
        self._publisher = publisher
        self._sent: dict[str, EventId | None] = dict.fromkeys(self.channels)
        self._job: str | None = None
        keyless = publisher.settings.encryption_master_key is None
        self._locked = {name for name in self.channels if keyless and name.startswith(ENCRYPTED)}
        self._said: set[str] = set()
        self._next = 0
        self._pause = 0.0  # no message before this time of the loop's clock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def emit(self, batch: Sequence[Event]) -> None:
        """:raises SinkUnavailable: give the same events again; channels that had some do not get those twice.
        :raises Undeliverable: some were refused for good, on some channel; the others have arrived.
        """
        clock = asyncio.get_running_loop().time
        if batch[0].job != self._job:  # another completion on the same sink: its ids begin anew
            self._job, self._next = batch[0].job, 0
            self._sent = dict.fromkeys(self.channels)
        await asyncio.sleep(self._pause - clock())
        began = clock()
        numbered = [(event, event.id or EventId(1, self._next + place)) for place, event in enumerate(batch)]
        made = {limit: self._messages(numbered, limit) for limit in set(map(limit_of, self.channels))}
        outcomes = await asyncio.gather(
            *(self._send(channel, made[limit_of(channel)]) for channel in self.channels), return_exceptions=True
        )
        self._pause = began + self._publisher.settings.interval
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, Undeliverable) or failure.final:
                raise failure
        self._next += len(batch)
        if failures:
            raise failures[0]
        if batch[-1].type != "done":
            await asyncio.sleep(self._pause - clock())  # here, so that what comes meanwhile is merged

    def _messages(self, numbered: Sequence[tuple[Event, EventId]], limit: int) -> list[Message]:
        """Made once for all channels with the same limit."""
        return [
            message
            for event, event_id in numbered
            for message in messages_of(event.job or self.job_id, event, event_id, limit)
        ]

    async def _send(self, channel: str, made: Sequence[Message]) -> None:
        if channel in self._locked:
            self._tell_locked(channel)
            return
        sent = self._sent[channel]
        messages = [message for message in made if sent is None or message.event_id > sent]
        await self._publisher.send(channel, messages, partial(self._accepted, channel))

    def _tell_locked(self, channel: str) -> None:
        """Say once that an encrypted channel has no key; with no other channel there is nothing to deliver at all."""
        if channel in self._said:
            return
        self._said.add(channel)
        reason = f"the channel {channel} is encrypted, and PUSHER_ENCRYPTION_MASTER_KEY is not set"
        raise Undeliverable(reason, final=len(self._locked) == len(self.channels))

    def _accepted(self, channel: str, message: Message) -> None:
        if message.last:
            self._sent[channel] = message.event_id

    async def aclose(self) -> None:
        """The publisher is its owner's to close."""


def pusher_sinks(publisher: Publisher) -> SinkFactory:
    """What makes a job's Pusher sink."""

    async def make(job: JobInfo) -> Sink:
        return PusherSink(job.pusher_channels, publisher, job_id=job.id)

    return make
