"""A completion told as a job tells it: numbered, `meta` first, `done` last, whatever happens."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from deltafan.errors import CompletionError
from deltafan.events import EVENT_CLASSES, Done, Error, Event, EventId, Meta
from deltafan.transcript import Transcript


class Telling:
    """One completion on its way to readers who know jobs: ids are `1-<n>`, and `job` is a name made up for it.

    :param job_id: the `job` of the events; a random one when left out.
    """

    def __init__(self, *, model: str, provider: str = "", job_id: str | None = None) -> None:
        self.job_id = job_id or f"0-{secrets.token_hex(8)}"
        self.transcript = Transcript()
        self.failure: CompletionError | None = None
        """Why the completion failed, once its `error` has been told."""
        self._model = model
        self._provider = provider
        self._seq = 0
        self._began = 0.0
        self._first_token: float | None = None

    async def tell(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """What readers are told of `events`, which are closed here.

        :raises Exception: what is no failure of the completion but of this program, after its `error` and `done`.
        """
        self._began = time.monotonic()
        yield self._say(
            Meta(attempt=1, model=self._model, provider=self._provider, created=time.time_ns() // 1_000_000)
        )
        try:
            async with aclosing(events) as opened:
                async for event in opened:
                    if event.type in EVENT_CLASSES:  # others stay inside the process
                        yield self._say(event)
        except CompletionError as error:
            self.failure = error
            yield self._say(
                Error(code=error.code, message=error.message, status=error.status, retryable=error.retryable)
            )
            yield self._say(Done("error"))
        except Exception:
            yield self._say(Error(code="server_error", message="internal error"))
            yield self._say(Done("error"))
            raise

    def cut_short(self) -> Event:
        """The last word where the caller was cancelled, and `tell` with it."""
        return self._say(Done("cancelled"))

    def _say(self, event: Event) -> Event:
        if self._first_token is None and event.type.endswith("_delta"):
            self._first_token = self._elapsed()
        if isinstance(event, Done):  # the completion itself knows neither its length nor its times
            timings = {} if self._first_token is None else {"first_token": self._first_token}
            event = replace(event, text_length=len(self.transcript.text), timings={**timings, "total": self._elapsed()})
        event = replace(event, id=EventId(1, self._seq), job=self.job_id)
        self._seq += 1
        self.transcript.add(event)
        return event

    def _elapsed(self) -> float:
        return round((time.monotonic() - self._began) * 1000, 1)
