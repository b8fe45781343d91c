"""A deployment out of litellm's `litellm_params`: who asks it, and what its requests say that do not say otherwise."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from deltafan.client.litellm_params import model_of, seconds_of, split_params
from deltafan.errors import CompletionError, ConfigurationError, ValidationError
from deltafan.events import Delta, Event
from deltafan.llm.request import Request
from deltafan.llm.seam import Completions

_OURS: Final = frozenset({"api_key", "api_base", "base_url", "timeout", "request_timeout", "custom_llm_provider"})
_DEFAULTS: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "user",
        "verbosity",
    }
)
_LENGTHS: Final = frozenset({"max_tokens", "max_completion_tokens"})
"""Two names of one limit."""
_SHARES: Final = ("weight", "rpm", "tpm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What `litellm_params` say."""

    model: str
    api_key: str | None
    base_url: str | None
    timeout: float | None
    """Seconds that it may take of a call; `None`: as many as the call has."""
    params: Mapping[str, Any]
    """Of a request that does not bring its own."""
    shares: Mapping[str, Any]
    """`weight`, `rpm` and `tpm`."""


def told_by(litellm_params: Mapping[str, Any]) -> Told:
    """:raises ConfigurationError: names what is wrong, or not known."""
    given = dict(litellm_params)
    model = given.pop("model", None)
    shares = {name: given.pop(name) for name in _SHARES if name in given}
    try:
        ours, params = split_params(given)
        model = model_of(model, ours)
        timeout = seconds_of(ours) if ours.keys() & {"timeout", "request_timeout"} else None
    except ValidationError as error:
        raise ConfigurationError(f"litellm_params: {error.message}") from None
    unknown = sorted((ours.keys() - _OURS) | (params.keys() - _DEFAULTS))
    if unknown:
        raise ConfigurationError(f"litellm_params: {unknown[0]} is not one that a deployment may have")
    if isinstance(params.get("response_format"), type):
        raise ConfigurationError("litellm_params: response_format must be an object; a call may bring a pydantic model")
    return Told(
        model=model,
        api_key=ours.get("api_key"),
        base_url=ours.get("base_url") or ours.get("api_base"),
        timeout=timeout,
        params=params,
        shares={name: value for name, value in shares.items() if value is not None},
    )


class Asking:
    """Asks a deployment as it was told to: with its defaults, and no longer than it may take."""

    def __init__(self, inner: Completions, told: Told) -> None:
        self.told = told
        self._inner = inner

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`. Its own time limit is a failure of the deployment, after which others are asked."""
        limit = self.told.timeout
        own = limit is not None and (request.timeout is None or limit < request.timeout)
        asked = replace(request, params=self._params(request), timeout=limit if own else request.timeout)
        visible = False
        try:
            async with aclosing(self._inner.stream(asked)) as events:
                async for event in events:
                    visible = visible or isinstance(event, Delta)
                    yield event
        except CompletionError as error:
            if not own or error.code != "timeout_total":
                raise
            code = "timeout_stall" if visible else "timeout_first_token"
            failure = CompletionError(code, f"the deployment took longer than its {limit:g} s")
            failure.provider, failure.model, failure.usage = error.provider, error.model, error.usage
            raise failure from None

    def _params(self, request: Request) -> dict[str, Any]:
        void = _LENGTHS if request.params.keys() & _LENGTHS else frozenset[str]()
        defaults = {name: value for name, value in self.told.params.items() if name not in void}
        return {**defaults, **request.params}
