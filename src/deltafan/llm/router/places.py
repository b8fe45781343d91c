"""Where deployments ask, as one short text: what a cache stores for one router must not be found for another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from deltafan.llm.providers import split_model
from deltafan.llm.router.deployment import Deployment
from deltafan.llm.settings import LLMSettings


def digest(deployments: Sequence[Deployment], settings: LLMSettings | None, unknown: str) -> str:
    """32 hexadecimal digits of their names, providers, models and addresses, in any order; empty if there are none.

    :param unknown: the address of those with completions of their own that do not say where these ask.
    """
    places = sorted([one.name, *_place(one, settings, unknown)] for one in deployments)
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:32] if places else ""


def _place(one: Deployment, settings: LLMSettings | None, unknown: str) -> tuple[str, str, str]:
    provider, model = split_model(one.model, settings)
    url = one.base_url
    if url is None and one.completions is not None:
        url = unknown
    if url is None and settings is not None and provider in settings.providers:
        url = settings.providers[provider].base_url
    return provider, model, (url or "").rstrip("/")
