"""Settings of the streaming client."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, SecretStr

from deltafan.settings import Seconds, Settings


class ProviderSettings(Settings):
    """What differs from the provider's entry in the table. A name that is not in the table needs a `base_url`."""

    base_url: str | None = Field(default=None, description="Where its OpenAI-compatible API is, `/v1` included.")
    api_key: SecretStr | None = Field(default=None, description="The key. It is never shown in any output.")


class LLMSettings(Settings):
    default_provider: str = Field(default="openai", description="The provider of a model named without one.")
    providers: Mapping[str, ProviderSettings] = Field(default_factory=dict, description="By provider name.")
    connect_timeout: Seconds = Field(default=10.0, description="How long a TCP and TLS connection may take.")
    max_connections: int = Field(
        default=0, ge=0, description="Connections to one provider; 0 is no limit, for the worker's concurrency is one."
    )
