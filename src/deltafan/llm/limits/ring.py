"""The rings that wait for budget before a provider is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Final

from deltafan.errors import CompletionError
from deltafan.events import Event, Usage
from deltafan.llm.embeddings import Embedder, EmbeddingRequest, EmbeddingResult
from deltafan.llm.limits.budget import MAX_COUNT
from deltafan.llm.limits.estimate import embedding_tokens, max_output, prompt_tokens
from deltafan.llm.limits.headers import Observation, learn, paused
from deltafan.llm.limits.limiter import Limiter
from deltafan.llm.limits.slot import Slot
from deltafan.llm.providers import split_model
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions, Started
from deltafan.llm.settings import LLMSettings

_OWN_REFUSALS: Final = frozenset({"authentication", "bad_request", "context_length", "model_not_found"})
"""Without a status, and before anything has come: the request was refused here."""


class Limited:
    """Holds a slot of the model's limit for each completion. Goes between the retries and the transport.

    It reserves the tokens of the prompt (`Request.prompt_tokens`, or an estimate) and the most that the answer may
    have; the usage that is reported settles it. What a completion used that failed or was cancelled, nobody knows: its
    reservation stays spent. Headers and Retry-After of the answers teach the limiter. Waiting counts against
    `Request.timeout`.

    :param settings: as the transport's: the default provider, and the keys, of which a digest tells limits apart.
    """

    def __init__(self, inner: Completions, limiter: Limiter, settings: LLMSettings | None = None) -> None:
        self._inner = inner
        self._limiter = limiter
        self._settings = settings or LLMSettings()

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`. Beside what it says, raises what `TokenBucket.limit` does."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        account = _Account(self._limiter, request.model, self._settings)
        with account.named():
            async with account.limit(prompt_tokens(request), max_output(request), request.timeout) as slot:
                if request.timeout is not None:
                    request = replace(request, timeout=request.timeout - (loop.time() - begun))
                async with aclosing(self._answer(request, slot, account)) as events:
                    async for event in events:
                        yield event

    async def _answer(self, request: Request, slot: Slot, account: _Account) -> AsyncGenerator[Event, None]:
        """The completion, heard for what it tells about the limit."""
        begun = False
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    begun = True
                    if isinstance(event, Started):
                        account.heed(event.rate_limits)
                        if event.cached:
                            slot.refund()
                    elif isinstance(event, Usage):
                        _settle(slot, event)
                    yield event
        except CompletionError as error:
            account.failed(error, slot, begun=begun)
            raise


class LimitedEmbedder:
    """The same for embeddings. See `Limited`."""

    def __init__(self, inner: Embedder, limiter: Limiter, settings: LLMSettings | None = None) -> None:
        self._inner = inner
        self._limiter = limiter
        self._settings = settings or LLMSettings()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """See `Embedder.embed`. Beside what it says, raises what `TokenBucket.limit` does."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        account = _Account(self._limiter, request.model, self._settings)
        with account.named():
            async with account.limit(embedding_tokens(request.inputs), 0, request.timeout) as slot:
                if request.timeout is not None:
                    request = replace(request, timeout=request.timeout - (loop.time() - begun))
                try:
                    result = await self._inner.embed(request)
                except CompletionError as error:
                    account.failed(error, slot, begun=False)
                    raise
                account.heed(result.rate_limits)
                _settle(slot, result.usage)
                return result


class _Account:
    """The limit that one request counts against: that of its model and key."""

    def __init__(self, limiter: Limiter, model: str, settings: LLMSettings) -> None:
        self._limiter = limiter
        self._provider, self._name = split_model(model, settings)
        override = settings.providers.get(self._provider)
        secret = override.api_key if override else None
        self._model = f"{self._provider}/{self._name}"
        self._key = secret.get_secret_value().strip() if secret else ""

    def limit(self, tokens: int, output: int, timeout: float | None) -> Slot:
        return self._limiter.limit(tokens, max_output=output, model=self._model, key=self._key, timeout=timeout)

    def heed(self, rate_limits: Mapping[str, str]) -> None:
        self._observe(learn(rate_limits))

    def failed(self, error: CompletionError, slot: Slot, *, begun: bool) -> None:
        self._observe(paused(error.status, error.retry_after))
        if not begun and error.status is None and error.code in _OWN_REFUSALS:
            slot.refund()

    @contextmanager
    def named(self) -> Iterator[None]:
        """An error says whose it is."""
        try:
            yield
        except CompletionError as error:
            error.provider, error.model = error.provider or self._provider, error.model or self._name
            raise

    def _observe(self, observation: Observation) -> None:
        self._limiter.observe(observation, model=self._model, key=self._key)


def _settle(slot: Slot, used: Usage) -> None:
    """Leave the reservation as it is, if what was used is not known."""
    total = used.total_tokens
    if total is None and used.prompt_tokens is not None and used.completion_tokens is not None:
        total = used.prompt_tokens + used.completion_tokens
    if total is not None and used.source != "unknown":
        slot.settle(min(total, MAX_COUNT))
