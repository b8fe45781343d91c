"""`OpenAIClient`: completions and embeddings of one model, from any OpenAI-compatible provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from deltafan.client.arguments import check_arguments
from deltafan.client.batch import CONCURRENCY, iter_batch, run_batch
from deltafan.client.calls import Limits, Messages, request_of, warming
from deltafan.client.chain import Chain, Plan, open_chain
from deltafan.client.choices import Model, cache_of, model_name, with_own
from deltafan.client.frames import HEARTBEAT, check_heartbeat, sse_frames
from deltafan.client.result import Collector, Result, as_response
from deltafan.client.sinks import EventFunction, stream_to_function
from deltafan.client.vectors import Embeddings, embeddings_of
from deltafan.errors import CompletionError, ConfigurationError, FieldError, ValidationError
from deltafan.events import Event
from deltafan.llm import split_model
from deltafan.llm.cache import Cache, Warmed, warm_cache
from deltafan.llm.checks import check_seconds
from deltafan.llm.compose import Ring
from deltafan.llm.embeddings import Input
from deltafan.llm.limits import Limiter
from deltafan.llm.request import Api, Request
from deltafan.llm.router import Router
from deltafan.llm.tools import Tool, as_tool
from deltafan.sinks.base import Sink
from deltafan.sinks.pump import stream_to_sink
from deltafan.sinks.telling import Telling
from deltafan.transcript import Transcript
from deltafan.wiring import load


class OpenAIClient:
    """Completions and embeddings of one model. Open it with `async with`, or call `close`.

    Making one connects to nothing. Connections are made at first use, and shared by all clients of the event loop that
    have the same keys and addresses. Any number of calls may run at a time.

    :param model: a profile, its key, `provider/model`, or a bare name for the default provider.
    :param api: which of OpenAI's interfaces it uses.
    :param api_key: of the model's provider; left out, the environment's.
    :param base_url: of the model's provider; left out, the environment's or the provider's own.
    :param cache_backend: `"fs"`, `"redis"`, `"pg_redis"`, `"qdrant"`, which is opened at first use, by the settings
        (`DELTAFAN_CACHE_*`), and closed with the client; or a `Cache` of your own, which you close.
    :param limiter: which every try waits for. Several clients may share one.
    :param fallbacks: models to go on with when this one fails, in order.
    :param router: asks one of several deployments of the name that `model` is; with their own retries. Or what makes
        one of the completions that it may ask.
    :param tools: functions, or tools, that are run here when the model calls them.
    :param attempts: how often a call is tried in all, as long as nothing of the answer has been seen.
    :param backoff: the bound of the first wait, in seconds; it doubles with each attempt. The wait is random below that
        bound, and never shorter than the provider's Retry-After.
    :param timeout: seconds for a whole call, all attempts together; `None` is no limit.
    :param first_token_timeout: seconds until the first text, reasoning or tool call of each attempt.
    :param stall_timeout: seconds of silence after that.
    :raises ConfigurationError: a variable is wrong, or a function makes no tool.
    :raises ValidationError: an argument is.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache_backend: str | Cache | None = None,
        limiter: Limiter | None = None,
        fallbacks: Sequence[Model] = (),
        router: Router | Ring | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        api: Api = "chat",
        tools: Sequence[Tool | Callable[..., Any]] = (),
        attempts: int = 3,
        backoff: float = 0.5,
        timeout: float | None = 600.0,
        first_token_timeout: float | None = 120.0,
        stall_timeout: float | None = 60.0,
    ) -> None:
        check_arguments(
            api=api,
            attempts=attempts,
            backoff=backoff,
            limiter=limiter,
            router=router,
            fallbacks=fallbacks,
            tools=tools,
            api_key=api_key,
            base_url=base_url,
        )
        configuration = load()
        self.model = model_name(model)
        self.provider, self._bare_model = split_model(self.model, configuration.llm)
        self.settings = with_own(configuration.llm, self.provider, api_key, base_url)
        self._api: Api = api
        self._limits = Limits(timeout, first_token_timeout, stall_timeout)
        self._plan = Plan(
            model=self.model,
            settings=self.settings,
            attempts=attempts,
            backoff=backoff,
            cache=cache_of(cache_backend, configuration.cache),
            cache_folder=configuration.cache_folder,
            redis_url=configuration.redis.url,
            limiter=limiter,
            router=router,
            fallbacks=tuple(model_name(other, "fallbacks") for other in fallbacks),
            tools=tuple(as_tool(one) for one in tools),
        )
        # By loop, because connections belong to one: a client may serve one `asyncio.run` after another.
        self._chains: WeakKeyDictionary[asyncio.AbstractEventLoop, Chain] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.provider}/{self._bare_model}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections; the last client that shares them closes them. A later call opens new ones."""
        chain = self._chains.pop(asyncio.get_running_loop(), None)
        if chain is not None:
            await chain.aclose()

    def stream(
        self, messages: Messages | str | None = None, *, input: str | Messages | None = None, **params: Any
    ) -> AsyncGenerator[Event, None]:
        """The completion's events: deltas, `usage`, `done`. Close the generator if you do not iterate to its end.

        :param messages: a list in OpenAI's shape, or one user message.
        :param input: the same, by the name that the Responses API gave it.
        :param params: any parameter of the API; `stream=False` asks the provider for one answer, whose events come at
            once; `timeout`, `first_token_timeout` and `stall_timeout` for this call; and options of the cache.
        :raises ValidationError: at once, when there is no message, or two.
        :raises CompletionError: while iterating, when the completion failed.
        """
        return self._visible(self._request(messages, input, params))

    def events(
        self, messages: Messages | str | None = None, *, input: str | Messages | None = None, **params: Any
    ) -> AsyncGenerator[Event, None]:
        """As `stream`, with what stays inside a process: `Started`, which tells who answers, comes first."""
        return self._events(self._request(messages, input, params))

    def stream_sse(
        self,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        heartbeat: float = HEARTBEAT,
        **params: Any,
    ) -> AsyncGenerator[str, None]:
        """The completion as the text of a `text/event-stream` answer, for any web framework's streaming response.

        The frames are those of a job at the relay: `meta` first, `done` last, whatever happens; a failure is told by
        `error` before it, and not raised.

        :param heartbeat: seconds of silence after which a comment keeps proxies from closing the connection; at least
            0.1.
        :raises ValidationError: at once, as `stream`.
        """
        check_heartbeat(heartbeat)
        return sse_frames(self.stream(messages, input=input, **params), self._telling(), heartbeat)

    async def stream_to_sink(
        self,
        sink: Sink | EventFunction,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        **params: Any,
    ) -> Transcript:
        """Stream a completion to a sink: `meta` first, `done` last, whatever happens. The sink stays open.

        :param sink: of Redis, Pusher, memory or your own, which goes at its own pace and is tried again where it fails;
            or a function of one event, sync or async, whose errors end the completion.
        :return: what the completion amounts to.
        :raises CompletionError: it failed; the sink has been told by `error` and `done`.
        :raises SinkUnavailable: the sink did not get everything.
        """
        events = self.stream(messages, input=input, **params)
        if callable(getattr(sink, "emit", None)):
            return await stream_to_sink(events, sink, model=self._bare_model, provider=self.provider)  # type: ignore[arg-type]
        if not callable(sink):
            raise ValidationError([FieldError("sink", "must have `emit`, or be a function of an event")])
        return await stream_to_function(events, sink, self._telling())

    async def invoke(
        self,
        messages: Messages | str | None = None,
        *,
        input: str | Messages | None = None,
        raise_on_error: bool = True,
        **params: Any,
    ) -> Result:
        """The whole completion.

        :param raise_on_error: false puts a failure in the result's `error`, beside what had come until then.
        :raises ValidationError: as `stream`.
        :raises CompletionError: it failed.
        """
        return await self._invoke(self._request(messages, input, params), raise_on_error)

    async def get_response(
        self, messages: Messages | str | None = None, *, input: str | Messages | None = None, **params: Any
    ) -> dict[str, Any]:
        """The whole completion as plain data, fit for JSON. A failure is in it, and not raised.

        :return: `params` (what was asked), `output` (the text; `None` if it failed before any), `usage`, `status` (200,
            or the HTTP status that says what went wrong), `error` (`"OK"`, or why), `identifier` (as it was given), and
            what else a `Result` has.
        :raises ValidationError: as `stream`.
        """
        request = self._request(messages, input, params)
        asked = {"model": request.model, "messages": list(request.messages), **request.params}
        result = await self._invoke(request, raise_on_error=False)
        return as_response(result, asked, request.options.get("identifier"))

    async def embed(
        self,
        input: Input | Sequence[Input],
        *,
        dimensions: int | None = None,
        as_array: bool = False,
        timeout: float | None = None,
        **params: Any,
    ) -> Embeddings:
        """The vectors of texts, in their order; as many requests as the model's limits make of them.

        :param input: a text, the tokens of one, or a list of such.
        :param dimensions: the length of the vectors, for models that can shorten them.
        :param as_array: `vectors` is a numpy array, of float32, with a row for each input.
        :param timeout: seconds for each request; left out, the client's.
        :param params: any other parameter of the API, and options of the cache.
        :raises ValidationError: an option or the timeout is wrong.
        :raises CompletionError: it failed.
        :raises ConfigurationError: an array is asked for, and numpy is not installed.
        """
        check_seconds("timeout", timeout)
        timeout = self._limits.timeout if timeout is None else timeout
        return await embeddings_of(
            self._chain().embedder,
            self.model,
            self.settings,
            input,
            dimensions=dimensions,
            as_array=as_array,
            timeout=timeout,
            params=params,
        )

    async def warm_cache(
        self, inputs: Iterable[Messages | str], *, concurrency: int = CONCURRENCY, **params: Any
    ) -> Warmed:
        """Ask what the cache does not hold yet, so that it does. A failure does not stop the others.

        :param inputs: conversations, or user messages; from a generator, each is taken when its turn comes.
        :param params: for all of them; as those of `stream`.
        :return: how many were cached, how many are now, and which failed.
        :raises ConfigurationError: the client has no cache.
        :raises ValidationError: as `stream`.
        """
        if self._plan.cache is None:
            raise ConfigurationError("cache_backend: warm_cache needs a cache")
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ValidationError([FieldError("concurrency", "must be a whole number, 1 or more")])
        requests = warming(inputs, lambda messages: self._request(messages, None, params))
        return await warm_cache(self._chain().completions, requests, concurrency=concurrency)

    run_batch = staticmethod(run_batch)
    iter_batch = staticmethod(iter_batch)

    def _request(self, messages: Messages | str | None, given: Any, params: Mapping[str, Any]) -> Request:
        return request_of(self.model, messages, given, params, api=self._api, limits=self._limits)

    async def _invoke(self, request: Request, raise_on_error: bool) -> Result:
        collector = Collector(self._bare_model, self.provider)
        try:
            async with aclosing(self._events(request)) as events:
                async for event in events:
                    collector.add(event)
        except CompletionError as error:
            if raise_on_error:
                raise
            return collector.result(error)
        return collector.result()

    async def _visible(self, request: Request) -> AsyncGenerator[Event, None]:
        """Without what rings tell each other."""
        async with aclosing(self._events(request)) as events:
            async for event in events:
                if event.type != "started":
                    yield event

    async def _events(self, request: Request) -> AsyncGenerator[Event, None]:
        async with aclosing(self._chain().completions.stream(request)) as events:
            async for event in events:
                yield event

    def _chain(self) -> Chain:
        loop = asyncio.get_running_loop()
        chain = self._chains.get(loop)
        if chain is None:
            chain = self._chains[loop] = open_chain(self._plan)
        return chain

    def _telling(self) -> Telling:
        return Telling(model=self._bare_model, provider=self.provider)
