"""Profiles that come along: OpenAI's GPT-5 family and its embedding models.

Limits are those of the models' pages at developers.openai.com/api/docs/models; prices are genai-prices' (0.2.3), and a
test compares them. Where the installed genai-prices knows a price, that is what a cost is made from.
"""

from __future__ import annotations

from typing import Final

from deltafan.llm.price import Price
from deltafan.llm.profile import Capability, ModelProfile

_REASONS: Final[frozenset[Capability]] = frozenset(
    {"chat", "responses", "tools", "structured_output", "images", "reasoning"}
)


class GPT5(ModelProfile, bundled=True):
    model = "gpt-5"
    context_window = 400_000
    max_input = 272_000
    max_output = 128_000
    requests_per_minute = 500
    tokens_per_minute = 500_000
    capabilities = _REASONS
    price = Price("1.25", "10", "0.125")


class GPT5Mini(ModelProfile, bundled=True):
    model = "gpt-5-mini"
    context_window = 400_000
    max_input = 272_000
    max_output = 128_000
    requests_per_minute = 500
    tokens_per_minute = 500_000
    capabilities = _REASONS
    price = Price("0.25", "2", "0.025")


class GPT5Nano(ModelProfile, bundled=True):
    model = "gpt-5-nano"
    context_window = 400_000
    max_input = 272_000
    max_output = 128_000
    capabilities = _REASONS
    price = Price("0.05", "0.4", "0.005")


class GPT5Point1(ModelProfile, bundled=True):
    model = "gpt-5.1"
    context_window = 400_000
    max_input = 272_000
    max_output = 128_000
    capabilities = _REASONS
    price = Price("1.25", "10", "0.125")


class GPT5Point2(ModelProfile, bundled=True):
    model = "gpt-5.2"
    context_window = 400_000
    max_input = 272_000
    max_output = 128_000
    requests_per_minute = 500
    tokens_per_minute = 500_000
    capabilities = _REASONS
    price = Price("1.75", "14", "0.175")


class TextEmbedding3Large(ModelProfile, bundled=True):
    model = "text-embedding-3-large"
    max_input = 8192
    dimensions = 3072
    max_batch = 2048
    max_batch_tokens = 300_000
    requests_per_minute = 3_000
    tokens_per_minute = 1_000_000
    capabilities = frozenset({"embeddings"})
    price = Price(input="0.13")


class TextEmbedding3Small(ModelProfile, bundled=True):
    model = "text-embedding-3-small"
    max_input = 8192
    dimensions = 1536
    max_batch = 2048
    max_batch_tokens = 300_000
    requests_per_minute = 3_000
    tokens_per_minute = 1_000_000
    capabilities = frozenset({"embeddings"})
    price = Price(input="0.02")
