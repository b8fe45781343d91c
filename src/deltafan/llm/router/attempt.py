"""One deployment, asked once: its events, and what becomes of its health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from deltafan.errors import CompletionError
from deltafan.events import Done, Event, Usage
from deltafan.llm import pricing
from deltafan.llm.request import Request
from deltafan.llm.router.deployment import Member
from deltafan.llm.seam import Completions, Started
from deltafan.llm.settings import ModelSettings
from deltafan.llm.usage import estimate


class Attempt:
    """:param filtered: take an answer that the content filter cut off for a failure."""

    def __init__(
        self, member: Member, completions: Completions, request: Request, clock: Callable[[], float], *, filtered: bool
    ) -> None:
        self._member = member
        self._completions = completions
        self._request = request
        self._clock = clock
        self._filtered = filtered
        self._usage: Usage | None = None
        self._visible = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`. `Started` tells the deployment."""
        health = self._member.health
        began = self._clock()
        trial = health.begin(began)
        ended = False
        try:
            async with aclosing(self._completions.stream(self._request)) as events:
                async for event in events:
                    match event:
                        case Started():
                            event = replace(event, deployment=self._member.deployment.id)
                        case Usage():
                            self._usage = event
                            continue  # until it is known that the answer counts
                        case Done():
                            self._check(event)
                            ended = True
                            health.succeeded(self._clock(), trial, self._tokens())
                            if self._usage is not None:
                                yield self._usage
                        case _ if not self._visible:
                            self._visible = True
                            now = self._clock()
                            health.first_token(now, now - began)
                    yield event
            if not ended:
                raise CompletionError("malformed_stream", "the completion ended without an end")
        except CompletionError as error:
            if not ended:
                ended = True
                health.failed(self._clock(), trial, error)
            raise
        finally:
            if not ended:
                health.left(trial)

    async def spent(
        self, error: CompletionError, chars: int, models: Mapping[str, ModelSettings] | None
    ) -> Usage | None:
        """What it used although it failed; `None`: nothing that is known of.

        :param chars: characters of its output.
        :param models: what the settings say of models, such as a price.
        """
        if error.usage is not None or self._usage is not None:
            return error.usage or self._usage
        if not self._visible:
            return None
        used = estimate(self._request.messages, chars)
        price = partial(pricing.cost_usd, error.provider or "", error.model or "", used, models=models)
        cost = await asyncio.to_thread(price)  # the first look at the price list loads it
        return replace(used, cost_usd=cost)

    def _check(self, done: Done) -> None:
        if self._filtered and done.finish_reason == "content_filter":
            raise CompletionError("content_filter", "the provider's content filter cut the answer off")

    def _tokens(self) -> int:
        return 0 if self._usage is None else self._usage.total_tokens or 0
