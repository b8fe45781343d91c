"""Keys and addresses of providers, from everywhere that may say them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pydantic import SecretStr

from deltafan.llm.provider_table import ALIASES, PROVIDERS
from deltafan.llm.settings import ProviderSettings

Layers = Sequence[tuple[str, Mapping[str, ProviderSettings]]]
"""What was said of providers, the strongest first, and how an error names who said it."""


def provider_name_problem(name: str) -> str | None:
    """What is wrong with the name of a provider."""
    if name.replace("-", "").replace("_", "").isalnum() and name == name.lower() and name.isascii():
        return None
    return "a name is lower case letters, digits, - and _"


def base_url_problem(url: str) -> str | None:
    """What is wrong with the address of a provider."""
    return None if url.startswith(("http://", "https://")) else "must begin with http:// or https://"


def argument_problems(
    argument: str, values: Mapping[str, object], rule: Callable[[str], str | None] = lambda value: None
) -> Iterator[str]:
    """What is wrong with values that are given by provider. What is no name is not shown: it may be a key, in the wrong
    place."""
    for name, value in values.items():
        problem = provider_name_problem(name)
        if problem is not None:
            yield f"{argument}: {problem}"
        elif value is not None:
            problem = rule(value) if isinstance(value, str) else "must be text, or None"
            if problem is not None:
                yield f"{argument}[{name!r}]: {problem}"


def canonical(providers: Mapping[str, ProviderSettings]) -> dict[str, ProviderSettings]:
    """By the names of the table: `together_ai` is `together`."""
    return {ALIASES.get(name, name): settings for name, settings in providers.items()}


def from_variables(
    env: Mapping[str, str], own: Sequence[str], called: Callable[[str], str], problems: list[str]
) -> dict[str, ProviderSettings]:
    """What variables say: `GROQ_API_KEY`, `GROQ_BASE_URL`, and the same for the program's own providers."""
    found: dict[str, ProviderSettings] = {}
    for name in dict.fromkeys((*PROVIDERS, *own)):
        url = env.get(address_variable(name), "").strip() or None
        keys = PROVIDERS[name].key_names if name in PROVIDERS else (f"{_stem(name)}_API_KEY",)
        key = next((env[key].strip() for key in keys if env.get(key, "").strip()), None)
        problem = base_url_problem(url) if url is not None else None
        if problem is not None:
            problems.append(f"{called(address_variable(name))}: {problem}")
        elif url is not None or key is not None:
            found[name] = ProviderSettings(base_url=url, api_key=SecretStr(key) if key else None)
    return found


def merged(layers: Layers, problems: list[str]) -> dict[str, ProviderSettings]:
    """Every provider of any layer, each of its values from the strongest that has it."""
    found: dict[str, ProviderSettings] = {}
    for source, layer in layers:
        for name, said in layer.items():
            problem = provider_name_problem(name)
            if problem is not None:
                problems.append(f"{source}{problem}")
                continue
            known = found.get(name, ProviderSettings())
            found[name] = ProviderSettings(
                base_url=known.base_url or said.base_url, api_key=known.api_key or said.api_key
            )
    return found


def address_variable(name: str) -> str:
    """The variable of a provider's address."""
    return f"{_stem(name)}_BASE_URL"


def _stem(name: str) -> str:
    return name.upper().replace("-", "_")
