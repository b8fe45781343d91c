"""Settings of a worker's limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deltafan.settings import Seconds, Settings


class LimitSettings(Settings):
    limits: Literal["off", "process", "shared"] = Field(
        default="off", description="Keep each model and key within its limits: in each process, or over all workers."
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Requests to a model; unset is what its profile says."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="Tokens of a model, both ways; unset is what its profile says."
    )
    limit_wait: Seconds | None = Field(
        default=None, description="How long a request waits for its turn; unset is as long as it may take."
    )
