"""The client library: streams completions from OpenAI-compatible providers as events. Works without Redis.

`client` is not imported here: the openai SDK takes 0.7 s to import, and who only names models need not wait for it.
"""

from deltafan.llm.providers import PROVIDERS, Provider, provider_facts, split_model
from deltafan.llm.request import Request
from deltafan.llm.retry import Retrying
from deltafan.llm.seam import Completions, Started
from deltafan.llm.settings import LLMSettings, ProviderSettings

__all__ = [
    "PROVIDERS",
    "Completions",
    "LLMSettings",
    "Provider",
    "ProviderSettings",
    "Request",
    "Retrying",
    "Started",
    "provider_facts",
    "split_model",
]
