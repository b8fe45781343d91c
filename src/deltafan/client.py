"""`OpenAIClient` and `PusherSink` as a program uses them: what is not given comes from the environment's settings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from deltafan.errors import ConfigurationError, FieldError, ValidationError
from deltafan.events import Event
from deltafan.llm import ProviderSettings, Request, Retrying, split_model
from deltafan.llm.client import OpenAICompletions
from deltafan.settings import PusherSettings
from deltafan.sinks.base import Sink
from deltafan.sinks.pump import stream_to_sink
from deltafan.sinks.pusher import sink as pusher
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.transcript import Transcript
from deltafan.wiring import load


class OpenAIClient:
    """Streaming completions of one model, from any OpenAI-compatible provider. Open it with `async with`.

    :param model: `provider/model`, or a bare name for the default provider.
    :param api_key: of the model's provider; left out, the environment's.
    :param base_url: of the model's provider; left out, the environment's or the provider's own.
    :raises ConfigurationError: a variable is wrong.
    """

    def __init__(self, model: str, *, api_key: str | None = None, base_url: str | None = None) -> None:
        settings = load().llm
        self.model = model
        self.provider, _ = split_model(model, settings)
        if api_key is not None or base_url is not None:
            known = settings.providers.get(self.provider) or ProviderSettings()
            own = ProviderSettings(
                base_url=base_url or known.base_url, api_key=SecretStr(api_key) if api_key else known.api_key
            )
            settings = settings.model_copy(update={"providers": {**settings.providers, self.provider: own}})
        self._client = OpenAICompletions(settings)
        self._completions = Retrying(self._client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.__aexit__(None, None, None)

    def stream(
        self, messages: Sequence[Mapping[str, Any]] | str | None = None, *, input: str | None = None, **params: Any
    ) -> AsyncGenerator[Event, None]:
        """The completion's events: deltas, `usage`, `done`. Close the generator if you do not iterate to its end.

        :param messages: a list in OpenAI's shape, or one user message.
        :param input: the same as one message.
        :param params: any chat-completions parameter.
        :raises ValidationError: at once, when there is no message, or two.
        :raises CompletionError: while iterating, when the completion failed.
        """
        if (messages is None) == (input is None):
            raise ValidationError([FieldError("messages", "give either `messages` or `input`")])
        if messages is None or isinstance(messages, str):
            messages = [{"role": "user", "content": input if messages is None else messages}]
        return self._completions.stream(Request(self.model, messages, params))

    async def stream_to_sink(
        self,
        sink: Sink,
        messages: Sequence[Mapping[str, Any]] | str | None = None,
        *,
        input: str | None = None,
        **params: Any,
    ) -> Transcript:
        """Stream a completion to a sink: `meta` first, `done` last, whatever happens. The sink stays open.

        :return: what the completion amounts to.
        :raises CompletionError: it failed; the sink has been told by `error` and `done`.
        :raises SinkUnavailable: the sink did not get everything.
        """
        events = self.stream(messages, input=input, **params)
        return await stream_to_sink(events, sink, model=self.model, provider=self.provider)


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
        self._own = Publisher(settings)
        super().__init__(channel, self._own, job_id=job_id)

    async def aclose(self) -> None:
        await self._own.aclose()
