"""The doctor's check of a provider: does it answer to our key?"""

from __future__ import annotations

import aiohttp

from deltafan.cli.finding import Finding
from deltafan.llm import LLMSettings, ProviderSettings, provider_facts

SECONDS = 5.0
"""How long a provider may take to list its models."""


async def check_provider(name: str, settings: LLMSettings) -> Finding:
    """Ask for the list of models, which costs nothing."""
    facts, own = provider_facts(name), settings.providers.get(name) or ProviderSettings()
    url = own.base_url or facts.base_url
    key = own.api_key.get_secret_value() if own.api_key else ""
    variable = facts.key_names[0] if facts.key_names else f"{name.upper()}_API_KEY"
    if url is None:
        return Finding("provider", "fail", f"{name} has no address", f"set {name.upper()}_BASE_URL")
    if not key and not facts.keyless and own.base_url is None:
        return Finding("provider", "fail", f"{name}: no key", f"set {variable}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
            session.get(f"{url.rstrip('/')}/models", headers=headers) as answer,
        ):
            status = answer.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        seen = f"{name} at {url}: {str(error) or f'no answer within {SECONDS:g} s'}"
        return Finding("provider", "fail", seen, f"check the network, and {name.upper()}_BASE_URL")
    if status in (401, 403):
        return Finding("provider", "fail", f"{name} at {url} refuses the key ({status})", f"check {variable}")
    if status >= 400:
        mend = "check the address: it ends in /v1 with most providers"
        return Finding("provider", "warn", f"{name} at {url} answers {status} to GET /models", mend)
    return Finding("provider", "ok", f"{name} at {url} answers")
