"""Providers as data: what is known about each OpenAI-compatible endpoint, and how a model name chooses one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deltafan.llm.settings import LLMSettings

Prefill = Literal["none", "assistant", "prefix", "continue_final_message"]
"""How a completion is made to go on from given text.

    none                    it cannot
    assistant               a last message of the assistant is continued
    prefix                  the same, marked `"prefix": true`
    continue_final_message  the same, with `continue_final_message` in the request
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Facts about one provider. The defaults are those of a server that follows OpenAI's reference."""

    name: str
    base_url: str | None = None
    """`None`: each account has its own, which the settings must give."""
    key_names: tuple[str, ...] = ()
    """Environment variables that hold its key, the first found wins."""
    keyless: bool = False
    """Answers without a key."""
    usage_option: bool = True
    """Takes `stream_options`. Where it does not, it reports usage unasked."""
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of the output limit that all its models take."""
    prefill: Prefill = "none"
    prefill_base_url: str | None = None
    """Where prefill is served, if elsewhere."""
    done_without_finish_reason: bool = False
    """Its streams never name a finish reason; `[DONE]` is all that tells a complete one."""
    cost_in_usage: bool = False
    """Its usage holds `cost`, in US dollars: what it really charged."""


_TABLE = (
    # gpt-5 and the o-series refuse max_tokens; all its models take max_completion_tokens.
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        key_names=("OPENAI_API_KEY",),
        max_tokens="max_completion_tokens",
    ),
    # The v1 API: https://<resource>.openai.azure.com/openai/v1/, where the key is a bearer token.
    Provider(name="azure", key_names=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"), max_tokens="max_completion_tokens"),
    # Prefill ends with Claude Opus 4.6 and the models after it, which answer 400: it cannot be promised by provider.
    Provider(name="anthropic", base_url="https://api.anthropic.com/v1", key_names=("ANTHROPIC_API_KEY",)),
    Provider(
        name="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_names=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    # Answers 422 (extra_forbidden) to stream_options and to max_completion_tokens.
    Provider(
        name="mistral",
        base_url="https://api.mistral.ai/v1",
        key_names=("MISTRAL_API_KEY",),
        usage_option=False,
        prefill="prefix",
    ),
    Provider(name="ollama", base_url="http://localhost:11434/v1", key_names=("OLLAMA_API_KEY",), keyless=True),
    Provider(
        name="openrouter",
        base_url="https://openrouter.ai/api/v1",
        key_names=("OPENROUTER_API_KEY",),
        cost_in_usage=True,
    ),
    Provider(name="groq", base_url="https://api.groq.com/openai/v1", key_names=("GROQ_API_KEY",), prefill="assistant"),
    # Prefix completion is a beta with an address of its own.
    Provider(
        name="deepseek",
        base_url="https://api.deepseek.com/v1",
        key_names=("DEEPSEEK_API_KEY",),
        prefill="prefix",
        prefill_base_url="https://api.deepseek.com/beta",
    ),
    Provider(name="xai", base_url="https://api.x.ai/v1", key_names=("XAI_API_KEY",)),
    Provider(name="together", base_url="https://api.together.xyz/v1", key_names=("TOGETHER_API_KEY",)),
    Provider(name="fireworks", base_url="https://api.fireworks.ai/inference/v1", key_names=("FIREWORKS_API_KEY",)),
    Provider(name="cerebras", base_url="https://api.cerebras.ai/v1", key_names=("CEREBRAS_API_KEY",)),
    Provider(name="crusoe", base_url="https://api.inference.crusoecloud.com/v1", key_names=("CRUSOE_API_KEY",)),
    Provider(name="huggingface", base_url="https://router.huggingface.co/v1", key_names=("HF_TOKEN",)),
    Provider(
        name="vllm",
        base_url="http://localhost:8000/v1",
        key_names=("VLLM_API_KEY",),
        keyless=True,
        prefill="continue_final_message",
    ),
    Provider(name="lmstudio", base_url="http://localhost:1234/v1", key_names=("LMSTUDIO_API_KEY",), keyless=True),
    # https://<account>.snowflakecomputing.com/api/v2/cortex/v1
    Provider(name="snowflake", key_names=("SNOWFLAKE_TOKEN",), done_without_finish_reason=True),
    Provider(name="zai", base_url="https://api.z.ai/api/paas/v4", key_names=("ZAI_API_KEY",)),
)
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in _TABLE}


def provider_facts(name: str) -> Provider:
    """The table's entry, or for a name of the settings' own, the facts of a plain OpenAI-compatible server."""
    return PROVIDERS.get(name) or Provider(name=name, keyless=True)


def split_model(model: str, settings: LLMSettings | None = None) -> tuple[str, str]:
    """`groq/llama-3` is `("groq", "llama-3")`; a name without a known provider belongs, whole, to the default one.

    Only a provider of the table or of the settings counts as one: `meta-llama/Llama-3` is a model of the default
    provider. A model whose own name starts like a provider's needs both: `openrouter/openai/gpt-4o`.
    """
    settings = settings or LLMSettings()
    provider, slash, name = model.partition("/")
    if slash and name and (provider in PROVIDERS or provider in settings.providers):
        return provider, name
    return settings.default_provider, model
