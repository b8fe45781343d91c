"""The seam of everything that streams a completion: the client, and the rings around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from deltafan.events import Done, Event, FinishReason
from deltafan.llm.request import Request


@dataclass(frozen=True, slots=True)
class Started(Event):
    """Who answers, before what is answered. It stays inside the process: no log, sink or wire ever carries it."""

    type: ClassVar[str] = "started"
    provider: str = ""
    model: str = ""
    """As the provider names it in its answer; as it was asked for, where the answer does not say."""
    request_id: str | None = None
    """The provider's name for the request, which its support asks for: the answer's `x-request-id` header."""
    cached: bool = False
    """A cache answers, and no provider was asked."""
    created: int = 0
    """Unix time in seconds: the answer's own, or else when it began to come."""
    deployment: str | None = None
    """Which of a router's deployments answers."""
    response_id: str | None = None
    """The answer's own id; the Responses API goes on from it with `previous_response_id`."""
    rate_limits: Mapping[str, str] = field(default_factory=dict)
    """The answer's `x-ratelimit-*` headers as they were sent, names in lower case."""


@dataclass(frozen=True, slots=True)
class Ended(Done):
    """The `Done` of several choices. On the wire it is a `Done` like any other."""

    finish_reasons: Mapping[int, FinishReason] = field(default_factory=dict)
    """Of each choice its own, by index. It stays inside the process."""


class Completions(Protocol):
    """Streams completions. Implementations compose: a ring takes a `Completions` and is one."""

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one completion.

        Order: at most one `Started`, first; deltas, as the provider sent them; then exactly one `Usage`, reported by
        the provider or else estimated and labelled so; then exactly one `Done` with the finish reason, last. Nothing
        is yielded after `Done`, and no delta after an error. The client yields `Started` together with the first
        delta and not before: as long as nothing was yielded, a ring may still try again or ask somebody else.

        Failure: raises `CompletionError`, and nothing else, for whatever the provider or the network did. Deltas
        yielded before it stand; there is no `Usage` and no `Done` then. A stream that ends without a finish reason
        has failed.

        Closing: `aclose()`, and cancelling the task that iterates, close the provider's connection at once. Iterate to
        the end (not only to `Done`) and the connection may be used again for another completion. Whoever iterates
        must close: `async with aclosing(completions.stream(request)) as events`.

        Back pressure: nothing is read ahead of the consumer but what the socket's buffers hold.
        """
        ...
