"""What is asked of a model: a value, the same for every provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One streaming chat completion."""

    model: str
    """`provider/model`, or a bare name for the default provider."""
    messages: Sequence[Mapping[str, Any]]
    """OpenAI's shape."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Any parameter of chat completions; what the SDK does not know is sent as it is."""
    prefix: str = ""
    """The text already streamed, from which the completion goes on. Only for providers that support prefill."""
    timeout: float | None = None
    """Seconds for the whole completion."""
    first_token_timeout: float | None = None
    """Seconds from the start of the request to the first visible delta."""
    stall_timeout: float | None = None
    """Seconds without a byte from the provider, once a visible delta has come. A comment counts as life."""
