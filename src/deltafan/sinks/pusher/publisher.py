"""All of a process's messages to Pusher, over one session.

Each channel has at most one request in flight, so that its messages arrive in order. Requests carry up to ten messages,
of any channels that have something to say: a busy process makes fuller requests, an idle one makes them at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from deltafan.settings import PusherSettings
from deltafan.sinks.base import SinkUnavailable, Undeliverable
from deltafan.sinks.pusher.api import (
    BATCH_MAX,
    CONNECTIONS,
    ApiError,
    Forbidden,
    PusherApi,
    Refused,
    Transient,
    Unauthorized,
)
from deltafan.sinks.pusher.circuit import Circuit
from deltafan.sinks.pusher.messages import Message
from deltafan.telemetry.hooks import Hook, Signal, silent

TRIES: Final = 4
"""Times that a request is made before its messages go back to where they came from."""
_BACKOFF: Final = 0.2
_BACKOFF_MAX: Final = 3.0
_CLOSED: Final = "the sink is closed"


@dataclass(eq=False, slots=True)
class _Sending:
    """One call of `send`: its messages that are still to go, and how it stands."""

    channel: str
    waiting: deque[Message]
    ended: asyncio.Future[None]
    accepted: Callable[[Message], None]
    refused: str | None = None
    failed: bool = False


class Publisher:
    """Open it with `async with`, or call `aclose`. Everything happens in the loop in which it is first used."""

    def __init__(self, settings: PusherSettings, hook: Hook = silent) -> None:
        self.settings = settings
        self._hook = hook
        self._api: PusherApi | None = None
        self._circuit = Circuit(lambda: asyncio.get_running_loop().time())
        self._queues: dict[str, deque[_Sending]] = {}  # by channel; a channel without any is not kept
        self._ready: deque[str] = deque()  # channels that have something to say and no request in flight
        self._requests: set[asyncio.Task[None]] = set()
        self._woken = False
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of everything; what is still to be sent is not."""
        self._closed = True
        for request in tuple(self._requests):
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for sending in [sending for queue in self._queues.values() for sending in queue]:
            if not sending.ended.done():
                sending.ended.set_exception(SinkUnavailable(_CLOSED))
        if self._api is not None:
            await self._api.aclose()
            self._api = None

    async def send(self, channel: str, messages: Sequence[Message], accepted: Callable[[Message], None]) -> None:
        """Send messages on a channel, in order, and return when all have been accepted or refused.

        :param accepted: called with each message as it is accepted.
        :raises SinkUnavailable: from some message on, they may not have arrived.
        :raises Undeliverable: some were refused for good, and left out; or the credentials are, and all would be.
        """
        if not messages:
            return
        if self._closed:
            raise SinkUnavailable(_CLOSED)
        if self._circuit.remaining > 0:
            raise self._broken()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sending = _Sending(channel, deque(messages), ended, accepted)
        queue = self._queues.setdefault(channel, deque())
        queue.append(sending)
        if len(queue) == 1:
            self._ready.append(channel)
            self._wake()
        try:
            await ended
        finally:
            sending.waiting.clear()  # cancelled: what is not on its way stays
        if sending.refused is not None:
            raise Undeliverable(sending.refused)

    def _wake(self) -> None:
        """Make requests at the end of this turn of the loop, so that those who speak at once share one."""
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._woken = False
        while self._ready and len(self._requests) < CONNECTIONS and not self._closed:
            batch, channels = self._next_batch()
            if not batch:
                continue
            request = asyncio.create_task(self._request(batch, channels), name="deltafan-pusher")
            self._requests.add(request)
            request.add_done_callback(self._requested)

    def _requested(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._wake()

    def _next_batch(self) -> tuple[list[tuple[_Sending, Message]], list[str]]:
        batch: list[tuple[_Sending, Message]] = []
        channels: list[str] = []
        while self._ready and len(batch) < BATCH_MAX:
            channel = self._ready.popleft()
            taken = self._take(channel, BATCH_MAX - len(batch))
            if taken:
                batch += taken
                channels.append(channel)
            else:
                self._free(channel)
        return batch, channels

    def _take(self, channel: str, room: int) -> list[tuple[_Sending, Message]]:
        taken: list[tuple[_Sending, Message]] = []
        for sending in self._queues[channel]:
            while sending.waiting and len(taken) < room:
                taken.append((sending, sending.waiting.popleft()))
        return taken

    def _free(self, channel: str) -> None:
        """Its request has been answered: end what is through, and let it speak again if it has more."""
        queue = self._queues[channel]
        while queue and not queue[0].waiting:
            ended = queue.popleft().ended
            if not ended.done():
                ended.set_result(None)
        if queue:
            self._ready.append(channel)
        else:
            del self._queues[channel]

    async def _request(self, batch: list[tuple[_Sending, Message]], channels: list[str]) -> None:
        try:
            await self._deliver(batch)
        except ApiError as error:
            self._fail(batch, self._failure(error))
        except (SinkUnavailable, Undeliverable) as error:
            self._fail(batch, error)
        except asyncio.CancelledError:
            self._fail(batch, SinkUnavailable(_CLOSED))
            raise
        except Exception as error:  # a fault of ours costs these messages, not the others
            self._fail(batch, SinkUnavailable(f"{type(error).__name__}: {error}"))
        finally:
            for channel in channels:
                self._free(channel)

    async def _deliver(self, batch: list[tuple[_Sending, Message]]) -> None:
        try:
            await self._patiently(batch)
        except Refused as error:
            if len(batch) == 1:
                ((sending, _),) = batch
                sending.refused = str(error)
                self._signal("pusher.refused", "error", channel=sending.channel, error=str(error))
                return
            for single in batch:  # one of them is at fault: the others are not to suffer
                await self._single(single)
            return
        for sending, message in batch:
            sending.accepted(message)

    async def _single(self, single: tuple[_Sending, Message]) -> None:
        try:
            if single[0].failed:
                raise Transient("what came before it has failed")
            await self._deliver([single])
        except ApiError as error:
            self._fail([single], self._failure(error))
        except (SinkUnavailable, Undeliverable) as error:
            self._fail([single], error)

    async def _patiently(self, batch: list[tuple[_Sending, Message]]) -> None:
        """Make a request, again after what may pass. Each is signed anew: a signature is good for ten minutes."""
        if not self._circuit.admit():
            raise self._broken()
        try:
            await self._try(batch)
        except (Forbidden, Unauthorized) as error:
            self._opened(self._circuit.open(str(error), final=isinstance(error, Unauthorized)), error)
            raise
        except Transient as error:
            if not _abandoned(batch):
                self._opened(self._circuit.open(str(error), outage=True), error)
            self._circuit.give_back()
            raise
        except Refused:
            self._circuit.close()
            raise
        except BaseException:
            self._circuit.give_back()
            raise
        self._circuit.close()

    async def _try(self, batch: list[tuple[_Sending, Message]]) -> None:
        if self._api is None:
            self._api = PusherApi(self.settings)
        for tries in range(1, TRIES + 1):
            offset = self._api.clock_offset
            try:
                await self._api.send([(sending.channel, message) for sending, message in batch])
                return
            except Transient as error:
                # A long wait is for who gave us the messages: here it would hold up those of others.
                if tries == TRIES or error.retry_after > _BACKOFF_MAX or _abandoned(batch):
                    raise
                bound = min(_BACKOFF_MAX, _BACKOFF * 2**tries)
                await asyncio.sleep(max(random.uniform(0, bound), error.retry_after))  # noqa: S311 - jitter
            finally:
                if self._api.clock_offset != offset:
                    self._signal("pusher.clock_skew", "warning", seconds=round(self._api.clock_offset, 1))

    def _opened(self, seconds: float, error: ApiError) -> None:
        if seconds:
            self._signal("pusher.circuit_opened", "error", error=str(error), seconds=seconds)

    def _broken(self) -> Exception:
        """Why no request is made now."""
        if self._circuit.final:
            return Undeliverable(self._circuit.reason, final=True)
        return SinkUnavailable(self._circuit.reason, self._circuit.remaining)

    def _failure(self, error: ApiError) -> Exception:
        if isinstance(error, Unauthorized):
            return Undeliverable(str(error), final=True)
        waits = error.retry_after if isinstance(error, Transient) else 0.0
        return SinkUnavailable(str(error), max(waits, self._circuit.remaining))

    def _fail(self, batch: list[tuple[_Sending, Message]], error: Exception) -> None:
        """What was in the request failed, and with it what is behind it of the same calls: order is kept."""
        for sending, _ in batch:
            sending.waiting.clear()
            sending.failed = True
            if not sending.ended.done():
                sending.ended.set_exception(error)

    def _signal(self, name: str, level: str, **fields: object) -> None:
        self._hook(Signal(name, level, fields))  # type: ignore[arg-type]


def _abandoned(batch: list[tuple[_Sending, Message]]) -> bool:
    """Whether nobody waits for any of it any more."""
    return all(sending.ended.done() for sending, _ in batch)
