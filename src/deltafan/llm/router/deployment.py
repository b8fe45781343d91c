"""A place where a model can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltafan.errors import ConfigurationError
from deltafan.llm.checks import is_number
from deltafan.llm.router.health import Health
from deltafan.llm.seam import Completions


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model at a provider, with a key: one of those that answer to a name.

    :raises ConfigurationError: a number is not what it must be.
    """

    model: str
    """What its completions are asked for: `provider/model`. A provider that the settings add has its own address and
    key."""
    name: str = ""
    """What requests ask for; by default the model."""
    completions: Completions | None = field(default=None, repr=False)
    """Who asks it, with a key and an address of its own; by default the router's."""
    base_url: str | None = None
    """Where completions of its own ask, so that a cache tells its answers from those of other places. `None`: nobody
    knows, and what a cache stores for the router is of no use to another router object."""
    weight: float = 1.0
    """Its share among those of the same name. 0: only when the others cannot."""
    rpm: int | None = None
    """Requests in a minute after which others are preferred. A limiter further in makes sure of it."""
    tpm: int | None = None
    """The same for tokens, as they were used."""
    prefill: bool | None = None
    """Whether it can go on from given text; by default what is known of its provider."""
    id: str = ""
    """What it is called in `Started.deployment` and in what is told; by default name and number."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigurationError("deployment: model must be text, such as openai/gpt-5-mini")
        for text in ("name", "id"):
            if not isinstance(getattr(self, text), str):
                raise ConfigurationError(f"deployment {self.model}: {text} must be text")
        if not is_number(self.weight) or self.weight < 0:
            raise ConfigurationError(f"deployment {self.model}: weight must be a number of at least 0")
        for limit in ("rpm", "tpm"):
            value = getattr(self, limit)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigurationError(f"deployment {self.model}: {limit} must be a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """How a deployment does now."""

    id: str
    name: str
    model: str
    in_flight: int
    cooling: float
    """Seconds until it is tried again; 0: it is in use."""
    latency: float | None
    """Seconds to its first token, of late; `None`: not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A deployment and its health."""

    deployment: Deployment
    health: Health

    def within(self, now: float) -> bool:
        """Whether it has not had its requests and tokens of the last minute."""
        return self.health.within(now, self.deployment.rpm, self.deployment.tpm)

    def status(self, now: float) -> DeploymentStatus:
        one = self.deployment
        cooling, latency = max(0.0, self.health.ready_at - now), self.health.latency(now)
        return DeploymentStatus(one.id, one.name, one.model, self.health.in_flight, cooling, latency)
