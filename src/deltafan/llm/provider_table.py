"""What is known about each OpenAI-compatible endpoint, as data. Facts come from the documentation named beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    aliases: tuple[str, ...] = ()
    """Prefixes by which other programs know it: `together_ai/…` is `together/…`."""
    base_url: str | None = None
    """`None`: each account has its own, which the settings must give."""
    key_names: tuple[str, ...] = ()
    """Environment variables that hold its key, the first found wins."""
    keyless: bool = False
    """Answers without a key."""
    slashes: bool = True
    """Its own model names may hold a slash (`org/model`). If not, a prefix that is no provider is a mistake."""
    usage_option: bool = True
    """Takes `stream_options`. Where it does not, it reports usage unasked."""
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of the output limit that all its models take."""
    tools: bool = True
    """Takes `tools`. Whether a model can use them is the model's matter."""
    strict_tools: bool = True
    """Takes `strict` in a tool's definition, also beside tools without it."""
    embeddings: bool = False
    """Serves `/embeddings`."""
    responses: bool = False
    """Serves `/responses`."""
    reasoning_field: str | None = None
    """Where deltas of chat completions carry reasoning. `None`: nowhere of its own, or that differs by model. All the
    names that are known are read from every provider."""
    prefill: Prefill = "none"
    prefill_base_url: str | None = None
    """Where prefill is served, if elsewhere."""
    done_without_finish_reason: bool = False
    """Its streams never name a finish reason; `[DONE]` is all that tells a complete one."""
    cost_in_usage: bool = False
    """Its usage holds `cost`, in US dollars: what it really charged."""


_TABLE = (
    # developers.openai.com/api/reference. gpt-5 and the o-series refuse max_tokens; all its models take
    # max_completion_tokens.
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        key_names=("OPENAI_API_KEY",),
        slashes=False,
        max_tokens="max_completion_tokens",
        embeddings=True,
        responses=True,
    ),
    # learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle. The v1 API, at
    # https://<resource>.openai.azure.com/openai/v1/, where the key is a bearer token and a model is a deployment.
    Provider(
        name="azure",
        key_names=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        slashes=False,
        max_tokens="max_completion_tokens",
        embeddings=True,
        responses=True,
    ),
    # platform.claude.com/docs/en/api/openai-sdk: takes both names of the limit and stream_options; does not return
    # thinking. Prefill ends with Claude Opus 4.6 and the models after it, which answer 400: no promise by provider.
    Provider(
        name="anthropic",
        base_url="https://api.anthropic.com/v1",
        key_names=("ANTHROPIC_API_KEY",),
        slashes=False,
    ),
    # ai.google.dev/gemini-api/docs/openai. A name may begin with `models/`. Thoughts come inside the content.
    Provider(
        name="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_names=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        embeddings=True,
    ),
    # docs.mistral.ai/api. Answers 422 (extra_forbidden) to stream_options and to max_completion_tokens. Thinking comes
    # as parts of the content.
    Provider(
        name="mistral",
        base_url="https://api.mistral.ai/v1",
        key_names=("MISTRAL_API_KEY",),
        slashes=False,
        usage_option=False,
        embeddings=True,
        prefill="prefix",
    ),
    # docs.ollama.com/api/openai-compatibility
    Provider(
        name="ollama",
        aliases=("ollama_chat",),
        base_url="http://localhost:11434/v1",
        key_names=("OLLAMA_API_KEY",),
        keyless=True,
        embeddings=True,
        responses=True,
        reasoning_field="reasoning",
    ),
    # openrouter.ai/docs: stream_options is deprecated and without effect, for usage and cost always come.
    Provider(
        name="openrouter",
        base_url="https://openrouter.ai/api/v1",
        key_names=("OPENROUTER_API_KEY",),
        embeddings=True,
        responses=True,
        reasoning_field="reasoning",
        cost_in_usage=True,
    ),
    # console.groq.com/docs/openai; the API reference calls max_tokens deprecated.
    Provider(
        name="groq",
        base_url="https://api.groq.com/openai/v1",
        key_names=("GROQ_API_KEY",),
        strict_tools=False,
        max_tokens="max_completion_tokens",
        responses=True,
        reasoning_field="reasoning",
        prefill="assistant",
    ),
    # api-docs.deepseek.com. Prefix completion is a beta with an address of its own.
    Provider(
        name="deepseek",
        base_url="https://api.deepseek.com/v1",
        key_names=("DEEPSEEK_API_KEY",),
        slashes=False,
        reasoning_field="reasoning_content",
        prefill="prefix",
        prefill_base_url="https://api.deepseek.com/beta",
    ),
    # docs.x.ai/developers/model-capabilities/text/comparison: chat completions are its older API.
    Provider(
        name="xai",
        base_url="https://api.x.ai/v1",
        key_names=("XAI_API_KEY",),
        slashes=False,
        strict_tools=False,
        responses=True,
        reasoning_field="reasoning_content",
    ),
    # docs.together.ai/docs/openai-api-compatibility, /docs/inference/responses-api
    Provider(
        name="together",
        aliases=("together_ai",),
        base_url="https://api.together.xyz/v1",
        key_names=("TOGETHER_API_KEY",),
        embeddings=True,
        responses=True,
        reasoning_field="reasoning",
    ),
    # docs.fireworks.ai/tools-sdks/openai-compatibility
    Provider(
        name="fireworks",
        aliases=("fireworks_ai",),
        base_url="https://api.fireworks.ai/inference/v1",
        key_names=("FIREWORKS_API_KEY",),
        embeddings=True,
        responses=True,
        reasoning_field="reasoning_content",
    ),
    # inference-docs.cerebras.ai
    Provider(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        key_names=("CEREBRAS_API_KEY",),
        slashes=False,
        strict_tools=False,
        max_tokens="max_completion_tokens",
        reasoning_field="reasoning",
    ),
    Provider(name="crusoe", base_url="https://api.inference.crusoecloud.com/v1", key_names=("CRUSOE_API_KEY",)),
    # huggingface.co/docs/inference-providers: `org/model`, or `org/model:provider` to choose who serves it.
    Provider(
        name="huggingface",
        base_url="https://router.huggingface.co/v1",
        key_names=("HF_TOKEN",),
        responses=True,
    ),
    # docs.vllm.ai/en/latest/serving/openai_compatible_server. Its reasoning field was `reasoning_content` once.
    Provider(
        name="vllm",
        aliases=("hosted_vllm",),
        base_url="http://localhost:8000/v1",
        key_names=("VLLM_API_KEY",),
        keyless=True,
        embeddings=True,
        responses=True,
        prefill="continue_final_message",
    ),
    # lmstudio.ai/docs/api/openai-api
    Provider(
        name="lmstudio",
        aliases=("lm_studio",),
        base_url="http://localhost:1234/v1",
        key_names=("LMSTUDIO_API_KEY", "LM_STUDIO_API_KEY"),
        keyless=True,
        embeddings=True,
        responses=True,
    ),
    # https://<account>.snowflakecomputing.com/api/v2/cortex/v1
    Provider(name="snowflake", key_names=("SNOWFLAKE_TOKEN",), slashes=False, done_without_finish_reason=True),
    Provider(
        name="zai",
        base_url="https://api.z.ai/api/paas/v4",
        key_names=("ZAI_API_KEY",),
        slashes=False,
        reasoning_field="reasoning_content",
    ),
)
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in _TABLE}
ALIASES: dict[str, str] = {alias: provider.name for provider in _TABLE for alias in provider.aliases}
