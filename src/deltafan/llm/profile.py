"""`ModelProfile`: the facts about one model, and how a program adds its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from deltafan.llm.price import Price

Capability = Literal["chat", "responses", "embeddings", "tools", "structured_output", "images", "reasoning"]

_POSITIVE: Final = (
    "context_window",
    "max_input",
    "max_output",
    "dimensions",
    "max_batch",
    "max_batch_tokens",
    "requests_per_minute",
    "tokens_per_minute",
)


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """The facts about one model. `None` is unknown.

    A subclass that names a model registers itself, under its `key`:

        class House(ModelProfile):
            provider = "vllm"
            model = "acme/house-8b"
            key = "house"
            context_window = 32_768
            price = Price(input=0.1, output=0.4)

    The key then stands for `vllm/acme/house-8b` wherever a model is named. A subclass of a bundled profile, such as
    `class Ours(GPT5): tokens_per_minute = 2_000_000`, takes its place.

    :raises TypeError: at the class, if a name is not text or a limit is not a positive whole number.
    """

    key: str = ""
    """What the profile is called; the model's name where nothing else is given."""
    provider: str = "openai"
    model: str = ""
    """As the provider names it."""
    context_window: int | None = None
    """Tokens of prompt and completion together."""
    max_input: int | None = None
    """Tokens of a prompt, where that has a bound of its own. Of an embedding model: of one input."""
    max_output: int | None = None
    """Tokens of a completion, reasoning included."""
    dimensions: int | None = None
    """Of an embedding, unless fewer are asked for."""
    max_batch: int | None = None
    """Inputs in one request for embeddings."""
    max_batch_tokens: int | None = None
    """Tokens of all inputs in one request for embeddings."""
    requests_per_minute: int | None = None
    """What an account may ask. Bundled profiles name those of OpenAI's tier 1, the lowest that is paid."""
    tokens_per_minute: int | None = None
    """Prompt and completion tokens together."""
    capabilities: frozenset[Capability] | None = None
    price: Price | None = None
    """By list, for the standard service tier."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.model)
        for name in ("key", "provider", "model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise TypeError(f"{type(self).__name__}.{name}: must be text that is not empty")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise TypeError(f"{type(self).__name__}.{name}: must be a positive whole number, or None")
        if self.price is not None and not isinstance(self.price, Price):
            raise TypeError(f"{type(self).__name__}.price: must be a Price, or None")

    def __init_subclass__(cls, *, bundled: bool = False, **more: Any) -> None:
        super().__init_subclass__(**more)
        # What the class body sets becomes the default of a field: `GPT5.max_output` and `GPT5().max_output` are one.
        # A key is not inherited by another model.
        if "model" in cls.__dict__ and "key" not in cls.__dict__:
            cls.key = ""
        facts = [field.name for field in fields(ModelProfile)]
        for name, value in cls.__dict__.items():
            if name not in facts and not name.startswith("_") and not callable(value):
                raise TypeError(f"{cls.__name__}.{name}: is not a fact of a model; they are {', '.join(facts)}")
        # Not as text, whose meaning `dataclass` would look up in the class's module: code may run without one.
        cls.__annotations__ = {name: Any for name in facts if name in cls.__dict__}
        dataclass(frozen=True, kw_only=True)(cls)
        if cls.model:
            profile = cls()
            cls.key = profile.key
            (BUNDLED if bundled else _OWN)[profile.key] = profile


BUNDLED: Final[dict[str, ModelProfile]] = {}
_OWN: Final[dict[str, ModelProfile]] = {}


def own_profile(key: str) -> ModelProfile | None:
    """The profile that the program registered under this key."""
    return _OWN.get(key)


def own_profiles() -> list[ModelProfile]:
    """Every profile that the program registered."""
    return list(_OWN.values())
