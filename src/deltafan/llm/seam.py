"""The seam of everything that streams a completion: the client, and the rings around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from deltafan.events import Event
from deltafan.llm.request import Request


class Completions(Protocol):
    """Streams completions. Implementations compose: a ring takes a `Completions` and is one."""

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one completion.

        Order: deltas, as the provider sent them; then exactly one `Usage`, reported by the provider or else estimated
        and labelled so; then exactly one `Done` with the finish reason, last. Nothing is yielded after `Done`, and no
        delta after an error.

        Failure: raises `CompletionError`, and nothing else, for whatever the provider or the network did. Deltas
        yielded before it stand; there is no `Usage` and no `Done` then. A stream that ends without a finish reason
        has failed.

        Closing: `aclose()`, and cancelling the task that iterates, close the provider's connection at once. Iterate to
        the end (not only to `Done`) and the connection may be used again for another completion. Whoever iterates
        must close: `async with aclosing(completions.stream(request)) as events`.

        Back pressure: nothing is read ahead of the consumer but what the socket's buffers hold.
        """
        ...
