"""What is asked of a model: a value, the same for every provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Api = Literal["chat", "responses"]
"""Which of OpenAI's interfaces a request goes to: chat completions, or the Responses API."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion."""

    model: str
    """`provider/model`, or a bare name for the default provider."""
    messages: Sequence[Mapping[str, Any]]
    """Chat completions' shape, with either `api`. Empty where `params` bring an `input` for the Responses API."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Any parameter of chat completions; what the SDK does not know is sent as it is. For the Responses API they are
    translated, and its own parameters are taken too."""
    prefix: str = ""
    """The text already streamed, from which the completion goes on. Only for providers that support prefill."""
    timeout: float | None = None
    """Seconds for the whole completion."""
    first_token_timeout: float | None = None
    """Seconds from the start of the request to the first visible delta."""
    stall_timeout: float | None = None
    """Seconds without a byte from the provider, once a visible delta has come. A comment counts as life."""
    api: Api = "chat"
    streaming: bool = True
    """False: the provider is asked for one answer, and the same events come at once."""
    prompt_tokens: int | None = None
    """Tokens of the prompt as the context check counted them, for rings further in. Not sent."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What rings are told about this request, such as the cache's `ttl`. Not sent."""
