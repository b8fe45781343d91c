"""`Router`: several deployments under one name, for programs, and in the shape that litellm's users know."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Self, overload

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from deltafan.client.calls import Messages
from deltafan.client.choices import with_own
from deltafan.client.deployments import Asking, told_by
from deltafan.client.litellm import AsyncChunks, Chunks, aembedding, answer, client_for
from deltafan.client.litellm_params import fallbacks_of
from deltafan.client.transports import SharedTransport
from deltafan.errors import CompletionError, ConfigurationError, FieldError, ValidationError
from deltafan.llm import LLMSettings, Retrying, router, split_model
from deltafan.llm.compose import Rings, compose
from deltafan.llm.context import ContextCheck
from deltafan.llm.embeddings import Input
from deltafan.llm.router import Deployment, MidStream, Rules, Strategy
from deltafan.llm.router.deployment import Member
from deltafan.llm.router.router import FALLS_OVER
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


class Router(router.Router):
    """Several deployments under one name: `Router([Deployment("groq/llama", name="fast"), …])`.

    It serves by itself (`await router.acompletion("fast", "Hello")`), in a client (`OpenAIClient("fast",
    router=router)`), and in a worker. See `deltafan.llm.router.Router` for how it chooses and goes over to others.

    :param deployments: `Deployment`s, models, or litellm's `{"model_name": …, "litellm_params": {"model": …}}`, which
        may bring an `api_key` and an `api_base` of their own, a `timeout`, and parameters such as `temperature` for the
        calls that bring none.
    :param model_list: litellm's name of `deployments`.
    :param num_retries: how often a deployment is asked again before another is.
    :param strategy: or `routing_strategy`: `weighted`, `least_busy` or `lowest_latency`, or litellm's name of one.
    :param fallbacks: for a name, the names to try when all its deployments have failed: a mapping, or a list of such.
    :param context_fallbacks: the same for requests that are too long.
    :param content_fallbacks: the same for what a content filter refused.
    :param context_window_fallbacks: litellm's name of `context_fallbacks`.
    :param content_policy_fallbacks: litellm's name of `content_fallbacks`.
    :param rules: when a deployment is left alone for a while.
    :param allowed_fails: as litellm has it: how often a deployment may fail within a minute; in place of `rules`.
    :param cooldown_time: as litellm has it: for how many seconds it is then left alone; in place of `rules`.
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
        allowed_fails: int | None = None,
        cooldown_time: float | None = None,
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
            rules=_rules(rules, allowed_fails, cooldown_time),
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
        """As `deltafan.acompletion`, of a name of this router; `fallbacks` are names of it, too."""
        router = self._falling_back(model, params.pop("fallbacks", None))
        client, params = client_for(model, params, router)
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

    async def aembedding(self, model: str, input: Input | Sequence[Input], **params: Any) -> CreateEmbeddingResponse:
        """As `deltafan.aembedding`, of a name of this router. After one deployment the others are asked, then those of
        its fallbacks; which one is first is random by weight, and one that cools down is last.

        :raises ConfigurationError: a deployment has completions of its own making, which embed nothing.
        """
        for name in ("api_key", "api_base", "base_url", "custom_llm_provider", "fallbacks"):
            if params.get(name) is not None:
                raise ValidationError([FieldError(name, "belongs to the router, or to its deployments")])
        given = {"num_retries": self._retries} | {key: value for key, value in params.items() if value is not None}
        self._members.check(model)
        failures: list[CompletionError] = []
        for name in dict.fromkeys((model, *self._fallbacks.get(model, ()))):
            for deployment in self._shuffled(name):
                try:
                    return await aembedding(deployment.model, input, **{**_address(deployment), **given})
                except CompletionError as error:
                    if error.code not in FALLS_OVER:
                        raise
                    failures.append(error)
        raise failures[0]

    def embedding(self, model: str, input: Input | Sequence[Input], **params: Any) -> CreateEmbeddingResponse:
        """As `deltafan.embedding`, of a name of this router."""
        return portal().run(self.aembedding(model, input, **params))

    async def aclose(self) -> None:
        """Let go of the connections that were made in this loop."""
        for transport in self._transports:
            await transport.aclose()

    def _falling_back(self, model: str, given: Any) -> Self:
        """This router, with the fallbacks of one call."""
        if given is None:
            return self
        names = fallbacks_of({"fallbacks": given})
        for name in names:
            self._members.check(name, "fallbacks: ")
        other = copy.copy(self)
        other._fallbacks = {**self._fallbacks, model: names}
        return other

    def _shuffled(self, name: str) -> list[Deployment]:
        """Heavier ones are earlier, by chance; those that cool down are last."""
        now = time.monotonic()

        def place(member: Member) -> tuple[bool, float]:
            weight = member.deployment.weight
            return not member.health.available(now), random.expovariate(weight) if weight else float("inf")

        return [member.deployment for member in sorted(self._members.of(name), key=place)]

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
        told = told_by(given["litellm_params"])
        own = with_own(settings, split_model(told.model, settings)[0], told.api_key, told.base_url)
        itself = own is settings and told.timeout is None and not told.params
        return Deployment(
            told.model,
            name=given.get("model_name") or told.model,
            completions=None if itself else Asking(self._asking(own), told),
            # A cache knows nothing of the defaults: what it holds for others of this address is not this one's.
            base_url=None if told.params else told.base_url,
            **told.shares,
        )


def _address(deployment: Deployment) -> dict[str, Any]:
    """Key, address and time limit for requests that do not go through its completions."""
    if deployment.completions is None:
        return {}
    if not isinstance(deployment.completions, Asking):
        raise ConfigurationError(f"deployment {deployment.id}: has completions of its own making, which embed nothing")
    told = deployment.completions.told
    return {"api_key": told.api_key, "base_url": told.base_url, "timeout": told.timeout}


def _rules(rules: Rules | None, allowed_fails: int | None, cooldown_time: float | None) -> Rules | None:
    if allowed_fails is None and cooldown_time is None:
        return rules
    if rules is not None:
        raise ConfigurationError("rules: they stand in place of allowed_fails and cooldown_time; give either")
    if allowed_fails is not None and (type(allowed_fails) is not int or allowed_fails < 0):
        raise ConfigurationError("allowed_fails: must be a whole number, 0 or more")
    if cooldown_time is not None and (isinstance(cooldown_time, bool) or not isinstance(cooldown_time, int | float)):
        raise ConfigurationError("cooldown_time: must be a number of seconds above 0")
    usual = Rules()
    return Rules(
        failures=usual.failures if allowed_fails is None else allowed_fails + 1,
        ratio=usual.ratio if allowed_fails is None else 0.0,
        cooldown=usual.cooldown if cooldown_time is None else float(cooldown_time),
    )


def _merged(name: str, given: Any) -> dict[str, Sequence[str]]:
    """A mapping, or litellm's list of mappings, as one."""
    mappings = [given] if isinstance(given, Mapping) else given
    if not isinstance(mappings, list | tuple) or not all(isinstance(one, Mapping) for one in mappings):
        raise ConfigurationError(f"{name}: must be a mapping of a name to a list of names")
    return {key: names for one in mappings for key, names in one.items()}
