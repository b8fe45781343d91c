"""Settings of the streaming client."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import Field, SecretStr

from deltafan.settings import Seconds, Settings

Positive = Annotated[int, Field(ge=1)]
Dollars = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class ProviderSettings(Settings):
    """What differs from the provider's entry in the table. A name that is not in the table needs a `base_url`."""

    base_url: str | None = Field(default=None, description="Where its OpenAI-compatible API is, `/v1` included.")
    api_key: SecretStr | None = Field(default=None, description="The key. It is never shown in any output.")


class ModelSettings(Settings):
    """What differs from a model's profile: limits in tokens, prices in US dollars per million tokens."""

    context_window: Positive | None = Field(default=None, description="Prompt and completion together.")
    max_input: Positive | None = Field(default=None, description="The longest prompt, where it has a bound of its own.")
    max_output: Positive | None = Field(default=None, description="The longest completion.")
    dimensions: Positive | None = Field(default=None, description="Of an embedding.")
    requests_per_minute: Positive | None = Field(default=None, description="What the account may ask.")
    tokens_per_minute: Positive | None = Field(default=None, description="Prompt and completion together.")
    input_price: Dollars | None = Field(default=None, description="Of the prompt.")
    cached_price: Dollars | None = Field(default=None, description="Of what the provider had in its cache.")
    output_price: Dollars | None = Field(default=None, description="Of the completion, reasoning included.")


class LLMSettings(Settings):
    default_provider: str = Field(default="openai", description="The provider of a model named without one.")
    providers: Mapping[str, ProviderSettings] = Field(default_factory=dict, description="By provider name.")
    models: Mapping[str, ModelSettings] = Field(
        default_factory=dict, description="By `provider/model`, or by the model's name alone; dated names included."
    )
    connect_timeout: Seconds = Field(default=10.0, description="How long a TCP and TLS connection may take.")
    max_connections: int = Field(
        default=0, ge=0, description="Connections to one provider; 0 is no limit, for the worker's concurrency is one."
    )
    check_context: bool = Field(
        default=True, description="Refuse a prompt that is longer than the model takes before it is sent."
    )
