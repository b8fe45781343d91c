from __future__ import annotations

from typing import Any

import pytest

from deltafan.errors import CompletionError
from deltafan.llm import PROVIDERS, LLMSettings, ProviderSettings, Request, provider_facts, split_model
from deltafan.llm.body import messages_of, params_of
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.providers import Provider
from tests.unit.llm.server import KEY

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o", ("openai", "gpt-4o")),
        ("groq/llama-3", ("groq", "llama-3")),
        ("openrouter/openai/gpt-4o", ("openrouter", "openai/gpt-4o")),
        ("together_ai/org/model", ("together", "org/model")),
        ("hosted_vllm/org/model", ("vllm", "org/model")),
        ("nosuch/model", ("nosuch", "model")),
        ("groq/", ("openai", "groq/")),
        ("groq", ("openai", "groq")),
        ("/x", ("openai", "/x")),
        ("", ("openai", "")),
    ],
)
def test_a_prefix_counts_only_if_it_is_a_provider(model: str, expected: tuple[str, str]) -> None:
    assert split_model(model) == expected


@pytest.mark.parametrize("provider", ["vllm", "openrouter", "huggingface", "together", "groq", "lmstudio", "ollama"])
def test_a_name_with_a_slash_belongs_to_a_default_provider_that_has_such_names(provider: str) -> None:
    settings = LLMSettings(default_provider=provider)
    assert split_model("meta-llama/Llama-3", settings) == (provider, "meta-llama/Llama-3")


def test_and_to_whatever_an_address_of_ones_own_serves() -> None:
    proxy = ProviderSettings(base_url="http://localhost:4000/v1")
    assert split_model("org/model", LLMSettings(providers={"openai": proxy})) == ("openai", "org/model")
    mine = LLMSettings(default_provider="mine", providers={"mine": proxy})
    assert split_model("org/model", mine) == ("mine", "org/model")
    assert split_model("org/model", own_address=True) == ("openai", "org/model")
    assert split_model("groq/model", own_address=True) == ("groq", "model")
    only_a_key = LLMSettings(providers={"openai": ProviderSettings(api_key=KEY)})
    assert split_model("org/model", only_a_key) == ("org", "model")


async def test_a_prefix_that_nobody_knows_is_an_error_and_sends_the_prompt_to_nobody() -> None:
    async with OpenAICompletions(LLMSettings(providers={"openai": ProviderSettings(api_key=KEY)})) as completions:
        with pytest.raises(CompletionError, match="'nosuch'") as caught:
            _ = [event async for event in completions.stream(Request("nosuch/model", MESSAGES))]
    assert (caught.value.code, caught.value.provider, caught.value.model) == ("bad_request", "nosuch", "model")


def test_the_settings_add_providers_and_choose_the_default() -> None:
    settings = LLMSettings(
        default_provider="groq", providers={"mine": ProviderSettings(base_url="http://localhost:9/v1")}
    )
    assert split_model("mine/m", settings) == ("mine", "m")
    assert split_model("meta/llama", settings) == ("groq", "meta/llama")


def test_the_table_is_whole() -> None:
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert provider.key_names
        assert provider.base_url is None or provider.base_url.startswith(("https://", "http://localhost"))
        assert provider.prefill_base_url is None or provider.prefill != "none"
        assert not set(provider.aliases) & set(PROVIDERS)
    assert set(PROVIDERS) >= {
        *("openai", "azure", "anthropic", "gemini", "mistral", "ollama", "openrouter", "groq", "deepseek", "xai"),
        *("together", "fireworks", "cerebras", "huggingface", "vllm", "lmstudio"),
    }


def test_a_provider_of_ones_own_is_a_plain_keyless_server() -> None:
    assert provider_facts("mine") == Provider(name="mine", keyless=True)


def test_keys_are_never_shown() -> None:
    settings = LLMSettings(providers={"openai": ProviderSettings(api_key=KEY)})
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert KEY not in shown


@pytest.mark.parametrize(
    ("provider", "params", "expected"),
    [
        ("openai", {}, {"stream_options": {"include_usage": True}}),
        ("mistral", {}, {}),
        ("mistral", {"stream_options": {"include_usage": True}}, {}),
        (
            "openai",
            {"stream_options": {"include_obfuscation": False}},
            {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        ),
        ("openai", {"max_tokens": 5}, {"max_completion_tokens": 5, "stream_options": {"include_usage": True}}),
        ("mistral", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("mistral", {"max_completion_tokens": 5, "max_tokens": 6}, {"max_completion_tokens": 5, "max_tokens": 6}),
        ("mistral", {"temperature": 0.5, "made_up": [1]}, {"temperature": 0.5, "made_up": [1]}),
        ("mistral", {"stream": False, "model": "x", "messages": [], "base_url": "x", "api_key": "x"}, {}),
        ("mistral", {"extra_headers": {"a": "b"}, "extra_body": {}, "extra_query": {}}, {}),
    ],
)
def test_parameters_are_passed_on_in_the_providers_dialect(
    provider: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert params_of(Request("m", MESSAGES, params), PROVIDERS[provider]) == expected


@pytest.mark.parametrize(
    ("provider", "last", "more"),
    [
        ("groq", {"role": "assistant", "content": "Hel"}, {}),
        ("mistral", {"role": "assistant", "content": "Hel", "prefix": True}, {}),
        ("deepseek", {"role": "assistant", "content": "Hel", "prefix": True}, {}),
        (
            "vllm",
            {"role": "assistant", "content": "Hel"},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_text_to_go_on_from_is_sent_as_the_provider_wants_it(
    provider: str, last: dict[str, Any], more: dict[str, Any]
) -> None:
    request = Request("m", MESSAGES, prefix="Hel")
    assert messages_of(request, PROVIDERS[provider]) == [*MESSAGES, last]
    params = params_of(request, PROVIDERS[provider])
    params.pop("stream_options", None)
    assert params == more


def test_text_to_go_on_from_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(CompletionError, match="openai cannot go on from given text") as caught:
        messages_of(Request("m", MESSAGES, prefix="Hel"), PROVIDERS["openai"])
    assert caught.value.code == "bad_request"
