"""Facts about models: limits, capabilities, prices."""

from deltafan.llm.price import Price
from deltafan.llm.profile import Capability, ModelProfile
from deltafan.llm.profiles.bundled import (
    GPT5,
    GPT5Mini,
    GPT5Nano,
    GPT5Point1,
    GPT5Point2,
    TextEmbedding3Large,
    TextEmbedding3Small,
)
from deltafan.llm.profiles.lookup import find_profile, profile_of

__all__ = [
    "GPT5",
    "Capability",
    "GPT5Mini",
    "GPT5Nano",
    "GPT5Point1",
    "GPT5Point2",
    "ModelProfile",
    "Price",
    "TextEmbedding3Large",
    "TextEmbedding3Small",
    "find_profile",
    "profile_of",
]
