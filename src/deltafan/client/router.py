"""`Router`: several deployments under one name, for programs, and in the shape that litellm's users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, overload

from openai.types.chat import ChatCompletion

from deltafan.client.calls import Messages
from deltafan.client.choices import with_own
from deltafan.client.litellm import AsyncChunks, Chunks, answer, client_for
from deltafan.client.transports import SharedTransport
from deltafan.errors import ConfigurationError
from deltafan.llm import LLMSettings, Retrying, router, split_model
from deltafan.llm.compose import Rings, compose
from deltafan.llm.context import ContextCheck
from deltafan.llm.router import Deployment, MidStream, Rules, Strategy
from deltafan.llm.seam import Completions
from deltafan.portal import portal
from deltafan.wiring import load

_STRATEGIES: Final[Mapping[str, Strategy]] = {
    "weighted": "weighted",
    "least_busy": "least_busy",
    "lowest_latency": "lowest_latency",
    "simple-shuffle": "weighted",
    "least-busy": "least_busy",
    "latency-based-routing": "lowest_latency",
}
"""Ours, and litellm's names of the same."""
_Names = Mapping[str, Sequence[str]] | Sequence[Mapping[str, Sequence[str]]]
"""For a name, others: in our shape, or in litellm's."""
_PARAMS: Final = ("model", "api_key", "api_base", "base_url", "weight", "rpm", "tpm")


class Router(router.Router):
    """Several deployments under one name: `Router([Deployment("groq/llama", name="fast"), …])`.

    It serves by itself (`await router.acompletion("fast", "Hello")`), in a client (`OpenAIClient("fast",
    router=router)`), and in a worker. See `deltafan.llm.router.Router` for how it chooses and goes over to others.

    :param deployments: `Deployment`s, models, or litellm's `{"model_name": …, "litellm_params": {"model": …}}`, which
        may bring an `api_key` and an `api_base` of their own.
    :param model_list: litellm's name of `deployments`.
    :param num_retries: how often a deployment is asked again before another is.
    :param strategy: or `routing_strategy`: `weighted`, `least_busy` or `lowest_latency`, or litellm's name of one.
    :param fallbacks: for a name, the names to try when all its deployments have failed: a mapping, or a list of such.
    :param context_fallbacks: the same for requests that are too long.
    :param content_fallbacks: the same for what a content filter refused.
    :param context_window_fallbacks: litellm's name of `context_fallbacks`.
    :param content_policy_fallbacks: litellm's name of `content_fallbacks`.
    :raises ConfigurationError: names what is wrong.
    """

    def __init__(
        self,
        deployments: Sequence[Deployment | str | Mapping[str, Any]] = (),
        *,
        model_list: Sequence[Mapping[str, Any]] = (),
        num_retries: int = 1,
        strategy: str = "weighted",
        routing_strategy: str | None = None,
        mid_stream: MidStream = "restart",
        fallbacks: _Names = (),
        context_fallbacks: _Names = (),
        content_fallbacks: _Names = (),
        context_window_fallbacks: _Names = (),
        content_policy_fallbacks: _Names = (),
        rules: Rules | None = None,
    ) -> None:
        if type(num_retries) is not int or num_retries < 0:
            raise ConfigurationError("num_retries: must be a whole number, 0 or more")
        chosen = _STRATEGIES.get(routing_strategy or strategy)
        if chosen is None:
            raise ConfigurationError(f"strategy: must be one of {', '.join(_STRATEGIES)}")
        self._retries = num_retries
        self._transports: list[SharedTransport] = []
        settings = load().llm
        super().__init__(
            [self._deployment(one, settings) for one in (*deployments, *model_list)],
            completions=self._asking(settings),
            strategy=chosen,
            mid_stream=mid_stream,
            fallbacks=_merged("fallbacks", fallbacks),
            context_fallbacks=_merged("context_fallbacks", context_fallbacks or context_window_fallbacks),
            content_fallbacks=_merged("content_fallbacks", content_fallbacks or content_policy_fallbacks),
            rules=rules,
            settings=settings,
        )

    @overload
    async def acompletion(
        self, model: str, messages: Messages | str = ..., *, stream: Literal[False] | None = ..., **params: Any
    ) -> ChatCompletion: ...
    @overload
    async def acompletion(
        self, model: str, messages: Messages | str = ..., *, stream: Literal[True], **params: Any
    ) -> AsyncChunks: ...
    async def acompletion(
        self, model: str, messages: Messages | str = (), *, stream: bool | None = False, **params: Any
    ) -> ChatCompletion | AsyncChunks:
        """As `deltafan.acompletion`, of a name of this router."""
        client, params = client_for(model, params, self)
        return await answer(client, messages, bool(stream), params)

    @overload
    def completion(
        self, model: str, messages: Messages | str = ..., *, stream: Literal[False] | None = ..., **params: Any
    ) -> ChatCompletion: ...
    @overload
    def completion(
        self, model: str, messages: Messages | str = ..., *, stream: Literal[True], **params: Any
    ) -> Chunks: ...
    def completion(
        self, model: str, messages: Messages | str = (), *, stream: bool | None = False, **params: Any
    ) -> ChatCompletion | Chunks:
        """As `deltafan.completion`, of a name of this router."""
        if stream:
            return Chunks(portal().run(self.acompletion(model, messages, stream=True, **params)))
        said: ChatCompletion = portal().run(self.acompletion(model, messages, **params))
        return said

    async def aclose(self) -> None:
        """Let go of the connections that were made in this loop."""
        for transport in self._transports:
            await transport.aclose()

    def _asking(self, settings: LLMSettings) -> Completions:
        transport = SharedTransport(settings)
        self._transports.append(transport)
        return compose(
            transport,
            Rings(
                context=partial(ContextCheck, settings=settings), retry=partial(Retrying, attempts=self._retries + 1)
            ),
        )

    def _deployment(self, given: Deployment | str | Mapping[str, Any], settings: LLMSettings) -> Deployment:
        if isinstance(given, Deployment):
            return given
        if isinstance(given, str):
            return Deployment(given)
        if not isinstance(given, Mapping) or not isinstance(given.get("litellm_params"), Mapping):
            raise ConfigurationError("deployments: each must be a Deployment, a model, or have litellm_params")
        params = given["litellm_params"]
        unknown = sorted(params.keys() - set(_PARAMS))
        if unknown:
            raise ConfigurationError(f"litellm_params: {unknown[0]} is not one of {', '.join(_PARAMS)}")
        model = params.get("model")
        if not isinstance(model, str):
            raise ConfigurationError("litellm_params: model must be a name such as openai/gpt-5-mini")
        key, url = params.get("api_key"), params.get("base_url") or params.get("api_base")
        own = with_own(settings, split_model(model, settings)[0], key, url)
        return Deployment(
            model,
            name=given.get("model_name") or model,
            completions=self._asking(own) if own is not settings else None,
            weight=params.get("weight", 1.0),
            rpm=params.get("rpm"),
            tpm=params.get("tpm"),
        )


def _merged(name: str, given: Any) -> dict[str, Sequence[str]]:
    """A mapping, or litellm's list of mappings, as one."""
    mappings = [given] if isinstance(given, Mapping) else given
    if not isinstance(mappings, list | tuple) or not all(isinstance(one, Mapping) for one in mappings):
        raise ConfigurationError(f"{name}: must be a mapping of a name to a list of names")
    return {key: names for one in mappings for key, names in one.items()}
