"""Profiles of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot

from deltafan.llm import LLMSettings, ProviderSettings, profile, split_model
from deltafan.llm.profiles import (
    GPT5,
    GPT5Mini,
    GPT5Nano,
    GPT5Point1,
    GPT5Point2,
    ModelProfile,
    Price,
    TextEmbedding3Large,
    TextEmbedding3Small,
    find_profile,
    profile_of,
)
from deltafan.llm.settings import ModelSettings

BUNDLED = (GPT5, GPT5Mini, GPT5Nano, GPT5Point1, GPT5Point2, TextEmbedding3Large, TextEmbedding3Small)


@pytest.fixture(autouse=True)
def no_profiles_left() -> Iterator[None]:
    yield
    profile._OWN.clear()


def test_a_profile_is_the_same_facts_as_a_class_and_as_a_value() -> None:
    assert (GPT5.key, GPT5.provider, GPT5.model, GPT5.context_window) == ("gpt-5", "openai", "gpt-5", 400_000)
    assert GPT5().max_output == GPT5.max_output == 128_000
    assert find_profile(GPT5) == find_profile(GPT5()) == find_profile("gpt-5") == find_profile("openai/gpt-5") == GPT5()
    with pytest.raises(FrozenInstanceError):
        GPT5().max_output = 1  # type: ignore[misc]


@pytest.mark.parametrize("bundled", BUNDLED, ids=lambda bundled: bundled.key)
def test_bundled_prices_and_windows_are_those_of_genai_prices(bundled: type[ModelProfile]) -> None:
    [openai] = [provider for provider in get_snapshot().providers if provider.id == "openai"]
    [entry] = [entry for entry in openai.models if entry.id == bundled.model]
    assert bundled.price is not None
    listed = entry.prices
    assert (bundled.price.input, bundled.price.output, bundled.price.cached) == (
        listed.input_mtok,  # type: ignore[union-attr]
        listed.output_mtok,  # type: ignore[union-attr]
        listed.cache_read_mtok,  # type: ignore[union-attr]
    )
    assert (bundled.context_window or bundled.max_input) == entry.context_window


@pytest.mark.parametrize(
    ("model", "window", "max_output", "price"),
    [
        ("gpt-5-mini-2025-08-07", 400_000, 128_000, Price("0.25", 2, "0.025")),
        ("gpt-5.2-2099-01-01", 400_000, 128_000, Price("1.75", 14, "0.175")),
        ("gpt-4o", 128_000, None, Price("2.5", 10, "1.25")),
        ("gpt-4o-2024-11-20", 128_000, None, Price("2.5", 10, "1.25")),
        ("gpt-4o-2099-01-01", 128_000, None, Price("2.5", 10, "1.25")),
        ("gpt-4o-mini-2099-01-01", 128_000, None, Price("0.15", "0.6", "0.075")),
        ("gpt-5-pro", 400_000, None, Price(15, 120)),
        ("azure/gpt-4o-2024-11-20", 128_000, None, Price("2.5", 10, "1.25")),
        ("anthropic/claude-sonnet-4-5-20250929", 200_000, None, Price(3, 15, "0.3")),
        ("gpt-9", None, None, None),
        ("gpt-5.99", None, None, None),
        ("gpt-4omega", None, None, None),
        ("vllm/org/model", None, None, None),
        ("", None, None, None),
    ],
)
def test_a_model_is_found_by_its_name_then_by_the_longest_prefix(
    model: str, window: int | None, max_output: int | None, price: Price | None
) -> None:
    found = find_profile(model)
    assert (found.context_window, found.max_output, found.price) == (window, max_output, price)


def test_a_found_profile_bears_the_name_that_was_asked_for() -> None:
    found = find_profile("gpt-5-mini-2025-08-07")
    assert (found.provider, found.model) == ("openai", "gpt-5-mini-2025-08-07")


def test_a_subclass_registers_itself_and_its_key_stands_for_its_model() -> None:
    class House(ModelProfile):
        provider = "vllm"
        model = "acme/house-8b"
        key = "house"
        context_window = 32_768
        price = Price(input=0.1, output=0.4)

    assert find_profile("house") == find_profile("vllm/acme/house-8b") == House()
    assert split_model("house") == ("vllm", "acme/house-8b")
    assert find_profile("vllm/acme/house-8b:awq").context_window == 32_768
    assert find_profile("vllm/acme/house-80b").context_window is None


def test_a_profile_may_be_made_in_code_that_is_of_no_module() -> None:
    code = "class Loose(ModelProfile):\n    model: str = 'loose'\n    context_window = 5\n"
    exec(code, {"ModelProfile": ModelProfile, "__name__": "nowhere"})
    assert find_profile("loose").context_window == 5


def test_a_subclass_of_a_bundled_profile_takes_its_place() -> None:
    class Ours(GPT5):
        tokens_per_minute = 2_000_000

    assert find_profile("gpt-5") == Ours()
    assert find_profile("gpt-5-2025-08-07").tokens_per_minute == 2_000_000
    assert find_profile("gpt-5").max_output == 128_000
    assert find_profile("gpt-5-pro").tokens_per_minute is None  # another model, though its name begins the same
    assert find_profile("gpt-5-mini") == GPT5Mini()


def test_a_base_without_a_model_is_no_profile_and_hands_its_facts_on() -> None:
    class AtHome(ModelProfile):
        provider = "vllm"
        context_window = 8_192

    class Small(AtHome):
        model = "small"
        key = "s"

    class Large(Small):
        model = "large"

    assert sorted(profile._OWN) == ["large", "s"]
    assert find_profile("large").context_window == 8_192


def test_a_bare_bundled_name_belongs_to_the_default_provider() -> None:
    settings = LLMSettings(default_provider="azure")
    assert find_profile("gpt-5", settings).provider == "azure"
    assert split_model("gpt-5", settings) == ("azure", "gpt-5")


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"model": 5}, "Wrong.key: must be text"),
        ({"model": "m", "provider": ""}, "Wrong.provider: must be text that is not empty"),
        ({"model": "m", "context_window": 0}, "Wrong.context_window: must be a positive whole number, or None"),
        ({"model": "m", "max_output": "5"}, "Wrong.max_output: must be a positive whole number, or None"),
        ({"model": "m", "price": 5}, "Wrong.price: must be a Price, or None"),
        ({"model": "m", "contex_window": 5}, "Wrong.contex_window: is not a fact of a model; they are key, provider"),
    ],
)
def test_a_wrong_fact_is_told_where_the_class_is_made(facts: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        type("Wrong", (ModelProfile,), facts)
    assert profile._OWN == {}


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("openai/gpt-4o", "gpt-4o"),
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o", "azure/gpt-4o-2024-11-20"),
        ("vllm/org/model", "vllm/org/model"),
        ("org/model", "vllm/org/model"),
    ],
)
def test_the_settings_say_limits_of_any_model(key: str, model: str) -> None:
    settings = LLMSettings(models={key: ModelSettings(context_window=1000, tokens_per_minute=5)})
    found = find_profile(model, settings)
    assert (found.context_window, found.tokens_per_minute) == (1000, 5)


def test_the_more_exact_name_in_the_settings_wins() -> None:
    models = {
        "gpt-4o": ModelSettings(context_window=1),
        "gpt-4o-mini": ModelSettings(context_window=2),
        "azure/gpt-4o": ModelSettings(context_window=3),
    }
    assert [profile_of(*name, models).context_window for name in (
        ("openai", "gpt-4o-2024-11-20"), ("openai", "gpt-4o-mini"), ("azure", "gpt-4o"), ("openai", "gpt-4"),
    )] == [1, 2, 3, 8192]  # fmt: skip


def test_a_price_in_the_settings_leaves_the_others_as_they_are() -> None:
    settings = LLMSettings(models={"gpt-5": ModelSettings(input_price=Decimal("0.5"))})
    assert find_profile("gpt-5", settings).price == Price("0.5", 10, "0.125")
    settings = LLMSettings(models={"vllm/m": ModelSettings(output_price=Decimal(2))})
    assert find_profile("vllm/m", settings).price == Price(None, 2)


def test_settings_apply_to_a_profile_that_is_given() -> None:
    settings = LLMSettings(models={"gpt-5": ModelSettings(max_output=7)}, providers={"x": ProviderSettings()})
    assert find_profile(GPT5, settings) == replace(GPT5(), max_output=7)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "x", "-0.1"])
def test_a_price_is_a_number_of_0_or_more(wrong: Any) -> None:
    with pytest.raises(ValueError, match="price: output must be a number of 0 or more"):
        Price(1, wrong)


def test_prices_by_the_token() -> None:
    price = Price(1.25, 10)
    assert (price.input_per_token, price.output_per_token, price.cached_per_token) == (1.25e-6, 1e-5, None)
