"""The client for code without an event loop: the async one, driven on the process's background loop."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from deltafan.client.batch import CONCURRENCY, iter_batch, run_batch
from deltafan.client.calls import Messages
from deltafan.client.choices import Model
from deltafan.client.frames import HEARTBEAT
from deltafan.client.openai_client import OpenAIClient
from deltafan.client.result import Result
from deltafan.client.sinks import EventFunction
from deltafan.client.vectors import Embeddings
from deltafan.events import Event
from deltafan.llm.cache import Warmed
from deltafan.llm.embeddings import Input
from deltafan.portal import portal
from deltafan.sinks.base import Sink
from deltafan.transcript import Transcript

T = TypeVar("T")


class SyncClient:
    """As `OpenAIClient`, without `await`: for scripts, threads, Jupyter, and plain functions called inside a loop.

    Any thread may call it. In a forked child it connects anew. Open it with `with`, or call `close`.

    :param model: and all others: as those of `OpenAIClient`.
    """

    def __init__(self, model: Model, **options: Any) -> None:
        self.inner = OpenAIClient(model, **options)
        """The async client. `run_batch` takes its coroutines: `[client.inner.invoke(q) for q in questions]`."""
        self.model = self.inner.model
        self.provider = self.inner.provider

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.provider}/{self.model}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """As `OpenAIClient.close`."""
        portal().close(self.inner.close())

    def stream(
        self, messages: Messages | str | None = None, *, input: str | Messages | None = None, **params: Any
    ) -> Generator[Event, None, None]:
        """As `OpenAIClient.stream`: a plain generator."""
        return portal().iterate(self.inner.stream(messages, input=input, **params))

    def stream_sse(
        self,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        heartbeat: float = HEARTBEAT,
        **params: Any,
    ) -> Generator[str, None, None]:
        """As `OpenAIClient.stream_sse`: a plain generator, for Django's or Flask's streaming answers."""
        return portal().iterate(self.inner.stream_sse(messages, input=input, heartbeat=heartbeat, **params))

    def stream_to_sink(
        self,
        sink: Sink | EventFunction,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        **params: Any,
    ) -> Transcript:
        """As `OpenAIClient.stream_to_sink`. The sink is called in the background thread."""
        return portal().run(self.inner.stream_to_sink(sink, messages, input=input, **params))

    def invoke(
        self,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        raise_on_error: bool = True,
        **params: Any,
    ) -> Result:
        """As `OpenAIClient.invoke`."""
        return portal().run(self.inner.invoke(messages, input=input, raise_on_error=raise_on_error, **params))

    def get_response(
        self, messages: Messages | str | None = None, *, input: str | Messages | None = None, **params: Any
    ) -> dict[str, Any]:
        """As `OpenAIClient.get_response`."""
        return portal().run(self.inner.get_response(messages, input=input, **params))

    def embed(
        self,
        input: Input | Sequence[Input],
        *,
        dimensions: int | None = None,
        as_array: bool = False,
        timeout: float | None = None,
        **params: Any,
    ) -> Embeddings:
        """As `OpenAIClient.embed`."""
        return portal().run(
            self.inner.embed(input, dimensions=dimensions, as_array=as_array, timeout=timeout, **params)
        )

    def warm_cache(self, inputs: Iterable[Messages | str], *, concurrency: int = CONCURRENCY, **params: Any) -> Warmed:
        """As `OpenAIClient.warm_cache`."""
        return portal().run(self.inner.warm_cache(inputs, concurrency=concurrency, **params))

    @staticmethod
    def run_batch(
        coros: Iterable[Awaitable[T]], concurrency: int = CONCURRENCY, *, progress: bool = False
    ) -> list[T | Exception]:
        """As `run_batch`."""
        return portal().run(run_batch(coros, concurrency, progress=progress))

    @staticmethod
    def iter_batch(
        coros: Iterable[Awaitable[T]], concurrency: int = CONCURRENCY, *, progress: bool = False
    ) -> Generator[tuple[int, T | Exception], None, None]:
        """As `iter_batch`: a plain generator."""
        return portal().iterate(iter_batch(coros, concurrency, progress=progress))
