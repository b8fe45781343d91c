from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from deltafan.events import Usage
from deltafan.llm.pricing import cost_usd
from deltafan.llm.usage import add, estimate, parse_usage


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, (3, 2, 5, None, None)),
        ({"prompt_tokens": 3, "completion_tokens": 2}, (3, 2, 5, None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, 0, None, None)),
        ({"input_tokens": 3, "output_tokens": 2}, (3, 2, 5, None, None)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}, (3, None, None, 1, None)),
        ({"prompt_tokens": 3, "prompt_cache_hit_tokens": 2}, (3, None, None, 2, None)),
        ({"prompt_tokens": 3, "cached_tokens": 0}, (3, None, None, 0, None)),
        ({"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}, (None, 3, None, None, 2)),
        ({"prompt_tokens": 3, "reasoning_tokens": 2}, (3, None, None, None, 2)),
        (
            {"input_tokens": 3, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 1}}
            | {"output_tokens_details": {"reasoning_tokens": 8}},
            (3, 9, 12, 1, 8),
        ),
        (
            {"prompt_tokens": 3, "prompt_tokens_details": None, "completion_tokens_details": "x"},
            (3, None, None, None, None),
        ),
        ({"prompt_tokens": 3.0, "completion_tokens": 2}, (3, 2, 5, None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 2}, (None, 2, None, None, None)),
        ({"prompt_tokens": "3", "completion_tokens": 2.5, "total_tokens": 5}, (None, None, 5, None, None)),
        ({"prompt_tokens": True, "total_tokens": 5}, (None, None, 5, None, None)),
        ({"prompt_tokens": 10**30, "total_tokens": 5}, (None, None, 5, None, None)),
        (
            {"prompt_tokens": float("inf"), "completion_tokens": float("nan"), "total_tokens": 5},
            (None, None, 5, None, None),
        ),
    ],
)
def test_usage_of_all_shapes(raw: Any, expected: tuple[int | None, ...]) -> None:
    usage = parse_usage(raw)
    assert usage is not None
    assert (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    ) == expected
    assert usage.source == "reported"


@pytest.mark.parametrize("raw", [None, {}, "7", 7, [], {"prompt_tokens": None}, {"total_tokens": -5}])
def test_usage_without_a_count_is_none(raw: Any) -> None:
    assert parse_usage(raw) is None


@pytest.mark.parametrize(
    ("cost", "expected"), [(0.01, 0.01), (0, 0.0), (-1, None), ("1", None), (None, None), (True, None)]
)
def test_a_reported_cost_is_taken_where_the_provider_reports_costs(cost: Any, expected: float | None) -> None:
    raw = {"prompt_tokens": 1, "cost": cost}
    assert parse_usage(raw, cost_in_usage=True) == Usage(prompt_tokens=1, cost_usd=expected, source="reported")
    assert parse_usage(raw) == Usage(prompt_tokens=1, source="reported")


def test_an_estimate_counts_text_tool_calls_messages_and_images() -> None:
    messages = [
        {"role": "system", "content": "x" * 40},
        {
            "role": "user",
            "content": [{"type": "text", "text": "x" * 8}, {"type": "image_url", "image_url": {"url": "y" * 9999}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "ffff", "arguments": "aaaa"}}]},
    ]
    prompt = 3 * 4 + 765 + (40 + 8 + 8) // 4
    assert estimate(messages, 9) == Usage(
        prompt_tokens=prompt, completion_tokens=3, total_tokens=prompt + 3, source="estimated"
    )


@pytest.mark.parametrize(
    "message", [{}, {"content": 5}, {"content": [None, 5, {}]}, {"tool_calls": [{}, {"function": 5}]}]
)
def test_an_estimate_does_not_trip_over_odd_messages(message: dict[str, Any]) -> None:
    assert estimate([message], 0).prompt_tokens == 4


def test_sums_keep_what_is_unknown_unknown_and_the_worse_source() -> None:
    a = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, cached_tokens=1, cost_usd=0.5, source="reported")
    b = Usage(
        prompt_tokens=10, completion_tokens=20, total_tokens=30, reasoning_tokens=4, cost_usd=0.25, source="estimated"
    )
    expected = Usage(prompt_tokens=11, completion_tokens=22, total_tokens=33, cost_usd=0.75, source="estimated")
    assert add(a, b) == add(b, a) == expected
    assert add(a, Usage()) == Usage(source="unknown")


def test_a_known_model_has_a_price_and_cached_tokens_cost_less() -> None:
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=100_000)
    cost = cost_usd("openai", "gpt-4o", usage)
    assert cost == pytest.approx(3.5)
    cached = Usage(prompt_tokens=1_000_000, completion_tokens=100_000, cached_tokens=1_000_000)
    assert cost_usd("openai", "gpt-4o", cached) == pytest.approx(2.25)


@pytest.mark.parametrize("model", ["", "/", "\0", "\ud800", "gpt-99", "x" * 10_000, "(["])
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert cost_usd("openai", model, Usage(prompt_tokens=1, completion_tokens=1)) is None


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("vllm", Usage(prompt_tokens=1, completion_tokens=1)),
        ("nobody", Usage(prompt_tokens=1, completion_tokens=1)),
        ("openai", Usage(prompt_tokens=1)),
        ("openai", Usage()),
    ],
)
def test_what_is_not_known_costs_an_unknown_amount_not_nothing(provider: str, usage: Usage) -> None:
    assert cost_usd(provider, "gpt-4o", usage) is None


def test_more_cached_tokens_than_tokens_is_not_a_crash() -> None:
    assert cost_usd("openai", "gpt-4o", Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=9)) is not None


def test_naming_models_does_not_import_the_sdk_or_the_price_list() -> None:
    code = "import sys, json, deltafan.llm, deltafan.llm.pricing; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"openai", "genai_prices", "aiohttp", "httpx2"} & set(json.loads(out.stdout))
