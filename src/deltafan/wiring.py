"""From the environment to settings. This is the only place that reads the environment.

Every field of a settings object is a variable `DELTAFAN_<FIELD>`, except those that other tools know by another name:
`REDIS_URL`, `OPENAI_API_KEY`, `OPENAI_BASE_URL`, and the same two for every other provider. A variable that is empty
counts as not set. What is said in several places is taken from the first of these: a flag or an argument, `configure`,
the environment, the nearest `.env` file, the user's `config.toml`; else it has its default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_origin

from pydantic import ValidationError as PydanticError

from deltafan.config import process, providers
from deltafan.config.names import (
    COMPONENTS,
    PREFIX,
    TABLES,
    fields_of,
    guess,
    known_variables,
    option_name,
    unknown_names,
    variable,
)
from deltafan.config.pusher import pusher_settings
from deltafan.config.sources import Sources, gather
from deltafan.errors import ConfigurationError
from deltafan.lifeline import Lifeline
from deltafan.llm import PROVIDERS, LLMSettings, ProviderSettings
from deltafan.llm.cache.fs import default_folder
from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.limits.settings import LimitSettings
from deltafan.llm.provider_table import ALIASES
from deltafan.settings import (
    ClientSettings,
    JobLimits,
    LogSettings,
    PusherSettings,
    RedisSettings,
    RelaySettings,
    Retention,
    Settings,
    TokenSettings,
    WorkerSettings,
)

__all__ = [
    "COMPONENTS",
    "LIFELINE",
    "PREFIX",
    "TABLES",
    "Configuration",
    "as_variables",
    "child_environment",
    "configure",
    "known_variables",
    "load",
    "option_name",
    "take_lifeline",
    "variable",
]

LIFELINE: Final = "DELTAFAN_LIFELINE"
"""Set by a parent for its child: standard input is a pipe that it holds open, and at whose end the child ends too."""
_SUPERVISED: Final = "supervised"
_NOT_SETTINGS: Final = (LIFELINE,)
_OWN_WORDS: Final = {
    "too_short": "must name at least one",
    "string_pattern_mismatch": "may hold lower case letters, digits, - and _, at most 64, the first a letter or digit",
}
_TEST_PREFIX: Final = "DELTAFAN_TEST_"

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that can be set, one object a component."""

    redis: RedisSettings
    limits: JobLimits
    retention: Retention
    worker: WorkerSettings
    relay: RelaySettings
    tokens: TokenSettings
    pusher: PusherSettings
    llm: LLMSettings
    cache: CacheSettings
    limit: LimitSettings
    client: ClientSettings
    log: LogSettings
    chosen: frozenset[str]
    """The settings that were given, by `option_name`; the others are defaults."""
    cache_folder: Path
    """Where a cache keeps its files when its settings name no folder."""


def load(
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    called: Callable[[str], str] = str,
) -> Configuration:
    """Read all settings.

    :param env: the environment, and nothing else: no file, nothing that `configure` set. Left out: that of this
        process, and everything there is.
    :param overrides: settings that win over all else, by `option_name`; text is read as a variable's would be.
    :param called: how an error names an override (a command line puts dashes before it).
    :raises ConfigurationError: names each variable, override or line of a file that is wrong, and its rule; never shows
        a value.
    """
    problems: list[str] = []
    sources = gather(os.environ, problems) if env is None else Sources(env)
    loaded = _read(sources, overrides or {}, called, problems)
    known = {**PROVIDERS, **loaded.llm.providers}
    if loaded.llm.default_provider not in known:
        name = called("default_provider")
        if not overrides or overrides.get("default_provider") is None:
            name = sources.find("default_provider")[0]
        problems.append(f"{name}: must be one of {', '.join(sorted(known))}")
    if problems:
        raise ConfigurationError("\n".join(problems))
    return loaded


def configure(
    *,
    api_keys: Mapping[str, str | None] | None = None,
    base_urls: Mapping[str, str | None] | None = None,
    **settings: object,
) -> None:
    """Set keys, addresses and settings for this process, over what the environment and files say. What is made later
    takes them; clients that exist keep what they have. Calls add up, from any thread; `None` takes a value back.

        deltafan.configure(api_keys={"openai": "sk-…"}, base_urls={"mine": "http://gpu:8000/v1"})
        deltafan.configure(default_provider="mine")

    :param api_keys: by provider.
    :param base_urls: by provider; a name that is not in the table is a provider of the program's own.
    :param settings: any setting, by its name as a flag of the command line, with underscores.
    :raises ConfigurationError: names what is wrong, and its rule; nothing is set then.
    """
    problems: list[str] = []
    keys = {ALIASES.get(name, name): key for name, key in (api_keys or {}).items()}
    urls = {ALIASES.get(name, name): url for name, url in (base_urls or {}).items()}
    problems += providers.argument_problems("api_keys", keys)
    problems += providers.argument_problems("base_urls", urls, providers.base_url_problem)
    _read(Sources({}), settings, str, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    process.change(settings, keys, urls)


def _read(
    sources: Sources, overrides: Mapping[str, object], called: Callable[[str], str], problems: list[str]
) -> Configuration:
    given = {name: value for name, value in overrides.items() if value is not None}
    problems += [
        *sources.file.problems,
        *_unknown_variables(sources),
        *unknown_names(sources.file.settings, sources.file.called),
        *unknown_names(given, called),
    ]
    reader = _Reader(sources, given, called, problems)
    return Configuration(
        redis=reader.read(RedisSettings),
        limits=reader.read(JobLimits),
        retention=reader.read(Retention),
        worker=reader.read(WorkerSettings),
        relay=reader.read(RelaySettings),
        tokens=reader.read(TokenSettings),
        pusher=pusher_settings(sources.env, problems),
        llm=reader.read(LLMSettings, providers=_providers(sources, problems), models=sources.file.models),
        cache=reader.read(CacheSettings),
        limit=reader.read(LimitSettings),
        client=reader.read(ClientSettings),
        log=reader.read(LogSettings),
        chosen=frozenset(reader.chosen),
        cache_folder=default_folder(sources.env.get("XDG_CACHE_HOME"), Path.home()),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    sources: Sources
    given: Mapping[str, object]
    called: Callable[[str], str]
    problems: list[str]
    chosen: set[str] = field(default_factory=set)

    def read(self, component: type[S], **more: object) -> S:
        """One component's settings; what is wrong goes to `problems`, and the defaults stand in for it."""
        values: dict[str, object] = dict(more)
        names: dict[str, str] = {}
        for setting in fields_of(component):
            name = option_name(setting)
            if name in self.given:
                names[setting], value = self.called(name), self.given[name]
            else:
                names[setting], value = self.sources.find(setting)
            if value is None:
                continue
            self.chosen.add(name)
            values[setting] = _split(component, setting, value.strip()) if isinstance(value, str) else value
        try:
            return component.model_validate(values)
        except PydanticError as error:
            for found in error.errors(include_url=False, include_context=False, include_input=False):
                loc_field, *places = found["loc"]
                name = names.get(str(loc_field), str(loc_field))
                place = "".join(f", entry {place + 1}" for place in places if isinstance(place, int))
                rule = found["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
                self.problems.append(f"{name}{place}: {_OWN_WORDS.get(found['type'], rule)}")
            return component.model_validate(more)


def _is_list(component: type[Settings], field: str) -> bool:
    return get_origin(component.model_fields[field].annotation) is tuple


def _split(component: type[Settings], field: str, text: str) -> object:
    if not _is_list(component, field):
        return text
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _unknown_variables(sources: Sources) -> Iterator[str]:
    known = known_variables()
    for name in sorted(sources.env):
        if not name.startswith(PREFIX) or name.startswith(_TEST_PREFIX) or name in (*known, *_NOT_SETTINGS):
            continue
        yield f"{sources.called(name)}: is not a setting{guess(name, known)}"


def _providers(sources: Sources, problems: list[str]) -> dict[str, ProviderSettings]:
    """What is known of providers: those of the table, and those that are named anywhere."""
    listed = variable("providers")
    own = [name.strip() for name in sources.env.get(listed, "").split(",") if name.strip()]
    wrong = [name for name in own if providers.provider_name_problem(name)]
    problems += [f"{sources.called(listed)}: {providers.provider_name_problem(name)}" for name in wrong]
    layers: providers.Layers = (
        ("configure: ", sources.configured.providers),
        ("", providers.from_variables(sources.env, [n for n in own if n not in wrong], sources.called, problems)),
        (f"{sources.file.path}: providers: ", providers.canonical(sources.file.providers)),
    )
    found = providers.merged(layers, problems)
    for name in dict.fromkeys((*found, *own)):
        if name in PROVIDERS or name in wrong or (name in found and found[name].base_url):
            continue
        address = providers.address_variable(name)
        if not any(problem.startswith(sources.called(address)) for problem in problems):
            problems.append(f"{address}: is required for a provider that {_named_by(name, own, sources)} names")
        found.pop(name, None)
    return found


def _named_by(name: str, own: Sequence[str], sources: Sources) -> str:
    if name in own:
        return variable("providers")
    return "configure" if name in sources.configured.providers else str(sources.file.path)


def take_lifeline() -> Lifeline | None:
    """The lifeline to the parent, if it gave us one. Taken once: what we start ourselves does not inherit it."""
    given = os.environ.pop(LIFELINE, None)
    return Lifeline(supervised=given == _SUPERVISED) if given else None


def child_environment(more: Mapping[str, str] | None = None, *, supervised: bool = False) -> dict[str, str]:
    """The environment of a process of ours, whose standard input is a pipe from us.

    :param supervised: it is one of several worker processes.
    """
    return {**os.environ, **(more or {}), LIFELINE: _SUPERVISED if supervised else "1"}


def as_variables(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Overrides as variables, to hand them to a process of ours."""
    fields = {option_name(field): field for component in COMPONENTS for field in fields_of(component)}
    return {variable(fields[name]): str(value) for name, value in overrides.items() if value is not None}
