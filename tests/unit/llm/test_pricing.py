"""What completions cost. Golden sums are worked out by hand beside each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.events import Usage
from deltafan.llm import profile
from deltafan.llm.pricing import billed_output, cost_usd
from deltafan.llm.profiles import GPT5, ModelProfile, Price
from deltafan.llm.settings import ModelSettings
from deltafan.llm.usage import parse_usage, priced_apart


@pytest.fixture(autouse=True)
def no_profiles_left() -> Iterator[None]:
    yield
    profile._OWN.clear()


def used(prompt: int, completion: int | None, *, cached: int | None = None, total: int | None = None) -> Usage:
    return Usage(prompt, completion, total, cached_tokens=cached, source="reported")


@pytest.mark.parametrize(
    ("provider", "model", "usage", "dollars"),
    [
        # 1.25 in, 10 out, 0.125 cached: 600 x 1.25 + 400 x 0.125 + 50 x 10 = 750 + 50 + 500 = 1300 millionths
        ("openai", "gpt-5", used(1000, 50, cached=400), "0.0013"),
        ("openai", "gpt-5-2025-08-07", used(1000, 50, cached=400), "0.0013"),
        # 0.05, 0.4, 0.005: 1 x 0.05 + 1 x 0.4 = 0.45 millionths
        ("openai", "gpt-5-nano", used(1, 1), "0.00000045"),
        # 2.5, 10, 1.25: 1,000,000 of them cached, 100,000 out = 1.25 + 1
        ("openai", "gpt-4o-2024-11-20", used(1_000_000, 100_000, cached=1_000_000), "2.25"),
        ("azure", "gpt-4o", used(1_000_000, 100_000), "3.5"),
        # 3, 15; above 200,000 tokens of prompt 6, 22.5, for all of them
        ("anthropic", "claude-sonnet-4-5", used(200_000, 1_000), "0.615"),
        ("anthropic", "claude-sonnet-4-5", used(200_001, 1_000), "1.222506"),
        # 2.5, 15, 0.25; above 272,000 tokens 5, 22.5, 0.5: 172,001 x 5 + 100,000 x 0.5 + 10 x 22.5
        ("openai", "gpt-5.4", used(272_001, 10, cached=100_000), "0.91023"),
        # 0.02 and 0.13 a million; nothing comes out
        ("openai", "text-embedding-3-small", used(1_000_000, 0), "0.02"),
        ("openai", "text-embedding-3-large", used(8, None, total=8), "0.00000104"),
        # 0.2 in, 0.5 out; xAI's completion_tokens leave 300 reasoning tokens out, its total has them
        ("xai", "grok-4-fast", used(1000, 100, total=1400), "0.0004"),
        ("openai", "gpt-5", used(0, 0), "0"),
    ],
)
def test_golden_costs(provider: str, model: str, usage: Usage, dollars: str) -> None:
    assert cost_usd(provider, model, usage) == float(Decimal(dollars))


@pytest.mark.parametrize(
    ("tier", "dollars"),
    [(None, 2.25), ("default", 2.25), ("auto", 2.25), ("flex", 1.125), ("priority", 4.5), ("no such", 2.25)],
)
def test_service_tiers_have_their_own_prices(tier: str | None, dollars: float) -> None:
    assert cost_usd("openai", "gpt-5", used(1_000_000, 100_000), service_tier=tier) == dollars


def test_cache_writes_and_audio_have_their_own_prices() -> None:
    # 2 in, 2.5 written to the cache, 0.2 read from it: 1000 of each
    raw = {"prompt_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 1000}}
    assert cost_usd("openai", "gpt-6-sol", used(3000, 0, cached=1000), raw=raw) == 0.0047
    # 2.5 in, 10 out; audio 32 in, 64 out: 200 x 2.5 + 1000 x 32 + 50 x 10 + 100 x 64
    raw = {"prompt_tokens_details": {"audio_tokens": 1000}, "completion_tokens_details": {"audio_tokens": 100}}
    assert cost_usd("openai", "gpt-audio", used(1200, 150), raw=raw) == 0.0394


def test_counts_that_do_not_fit_each_other_are_left_out_of_the_sum() -> None:
    raw = {"prompt_tokens_details": {"cache_write_tokens": 10**9, "audio_tokens": 10**9}}
    assert cost_usd("openai", "gpt-6-sol", used(3000, 0), raw=raw) == cost_usd("openai", "gpt-6-sol", used(3000, 0))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, {}),
        ("x", {}),
        ({}, {}),
        ({"prompt_tokens_details": {"cache_write_tokens": 3, "audio_tokens": 0}}, {"cache_write_tokens": 3}),
        ({"input_tokens_details": {"cache_write_tokens": 3}}, {"cache_write_tokens": 3}),
        ({"output_tokens_details": {"audio_tokens": 3}}, {"output_audio_tokens": 3}),
        ({"prompt_tokens_details": {"cache_write_tokens": -3, "audio_tokens": "x"}}, {}),
    ],
)
def test_what_is_priced_apart_is_read_from_either_interface(raw: Any, expected: dict[str, int]) -> None:
    assert priced_apart(raw) == expected


@pytest.mark.parametrize(
    ("provider", "model", "usage"),
    [
        ("openai", "gpt-99", used(1, 1)),
        ("vllm", "gpt-5", used(1, 1)),
        ("nosuch", "m", used(1, 1)),
        ("huggingface", "openai/gpt-oss-120b", used(1, 1)),  # whoever serves it sets the price
        ("openai", "gpt-5", Usage()),
        ("openai", "gpt-5", Usage(prompt_tokens=1)),
        ("openai", "gpt-5", Usage(completion_tokens=1)),
        ("openai", "text-embedding-3-small", used(1, 1)),  # it has no price of output
        ("openai", "x" * 100_000, used(1, 1)),
        ("cerebras", "qwen-3-coder-480b", used(1, 1)),  # listed without a price
    ],
)
def test_what_is_not_known_costs_an_unknown_amount_and_not_nothing(provider: str, model: str, usage: Usage) -> None:
    assert cost_usd(provider, model, usage) is None


def test_the_program_s_own_price_wins_and_the_settings_over_it() -> None:
    class Ours(GPT5):
        price = Price(1, 2)

    assert cost_usd("openai", "gpt-5", used(1_000_000, 1_000_000)) == 3
    assert cost_usd("openai", "gpt-5-2025-08-07", used(1_000_000, 1_000_000)) == 3
    models = {"gpt-5": ModelSettings(output_price=Decimal("0.5"))}
    assert cost_usd("openai", "gpt-5", used(1_000_000, 1_000_000), models=models) == 1.5
    models = {"gpt-5": ModelSettings(context_window=5)}
    assert cost_usd("openai", "gpt-5", used(1_000_000, 1_000_000), models=models) == 3


def test_a_server_of_ones_own_has_the_price_that_one_gives_it() -> None:
    class House(ModelProfile):
        provider = "vllm"
        model = "acme/house"
        price = Price(input=1)

    assert cost_usd("vllm", "acme/house", used(1_000_000, 0)) == 1
    assert cost_usd("vllm", "acme/house", used(1_000_000, 1)) is None  # what output costs, nobody said
    models = {"mine/m": ModelSettings(input_price=Decimal(0), output_price=Decimal(0))}
    assert cost_usd("mine", "m", used(5, 5), models=models) == 0


def test_a_bundled_price_stands_in_where_the_list_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_prices import data_snapshot

    monkeypatch.setattr(data_snapshot, "_custom_snapshot", data_snapshot.DataSnapshot([], from_auto_update=True))
    assert cost_usd("openai", "gpt-5-mini", used(1_000_000, 1_000_000)) == 2.25
    assert cost_usd("openai", "gpt-4o", used(1_000_000, 1_000_000)) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(10, 5, 15), 5),
        (Usage(10, 5, None), 5),
        (Usage(10, 5, 40, reasoning_tokens=25), 30),
        (Usage(10, None, 15), 5),
        (Usage(10, None, 10), 0),
        (Usage(10, 5, 3), 5),
        (Usage(10, None, 3), None),
        (Usage(None, 5, 9), 5),
        (Usage(None, None, 9), None),
    ],
)
def test_output_is_billed_with_its_reasoning(usage: Usage, expected: int | None) -> None:
    assert billed_output(usage) == expected


COUNTS = st.integers(0, 10**9)


@given(prompt=COUNTS, cached=COUNTS, completion=COUNTS, more=COUNTS)
def test_more_tokens_never_cost_less_and_cached_ones_never_more(
    prompt: int, cached: int, completion: int, more: int
) -> None:
    for provider, model in (("openai", "gpt-5"), ("openai", "gpt-5.4"), ("anthropic", "claude-sonnet-4-5")):
        cost = cost_usd(provider, model, used(prompt, completion, cached=min(cached, prompt)))
        assert cost is not None
        assert 0 <= cost <= cost_usd(provider, model, used(prompt, completion))  # type: ignore[operator]
        assert cost <= cost_usd(provider, model, used(prompt, completion + more, cached=min(cached, prompt)))  # type: ignore[operator]


@given(
    prices=st.tuples(*[st.decimals(0, 1000, places=4)] * 3),
    counts=st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=5),
)
def test_what_several_completions_cost_is_what_their_sum_costs(
    prices: tuple[Decimal, Decimal, Decimal], counts: list[tuple[int, int]]
) -> None:
    price = Price(*prices)
    parts = [price.cost(prompt=prompt, cached=prompt // 2, completion=completion) for prompt, completion in counts]
    whole = price.cost(
        prompt=sum(prompt for prompt, _ in counts),
        cached=sum(prompt // 2 for prompt, _ in counts),
        completion=sum(completion for _, completion in counts),
    )
    assert whole == sum(part for part in parts if part is not None)


FIELDS = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"),
    *("cached_tokens", "audio_tokens", "cache_write_tokens", "reasoning_tokens"),
)
RAW = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=20,
)


@given(RAW)
def test_no_usage_that_a_provider_may_send_is_a_failure(raw: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        usage = parse_usage(raw)
        if usage is not None:
            cost = cost_usd("openai", "gpt-6-sol", usage, raw=raw)
            assert cost is None or cost >= 0
