"""From the environment to settings. This is the only place that reads the environment.

Every field of a settings object is a variable `DELTAFAN_<FIELD>`, except those that other tools know by another name:
`REDIS_URL`, `OPENAI_API_KEY`, `OPENAI_BASE_URL`, and the same two for every other provider. A flag or an argument wins
over the environment, and that over the default. A variable that is empty counts as not set.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, get_origin

from pydantic import SecretStr
from pydantic import ValidationError as PydanticError

from deltafan.errors import ConfigurationError
from deltafan.lifeline import Lifeline
from deltafan.llm import PROVIDERS, LLMSettings, ProviderSettings
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

PREFIX: Final = "DELTAFAN_"
LIFELINE: Final = "DELTAFAN_LIFELINE"
"""Set by a parent for its child: standard input is a pipe that it holds open, and at whose end the child ends too."""
_SUPERVISED: Final = "supervised"
_NAMED_OTHERWISE: Final = {"url": "REDIS_URL"}
_NOT_SETTINGS: Final = (LIFELINE,)
_OWN_WORDS: Final = {
    "too_short": "must name at least one",
    "string_pattern_mismatch": "may hold lower case letters, digits, - and _, at most 64, the first a letter or digit",
}
_PUSHER: Final[Mapping[str, tuple[str, ...]]] = {
    "app_id": ("PUSHER_APP_ID",),
    "key": ("PUSHER_KEY", "PUSHER_APP_KEY", "PUSHER_AUTH_KEY"),
    "secret": ("PUSHER_SECRET", "PUSHER_APP_SECRET", "PUSHER_AUTH_SECRET"),
    "cluster": ("PUSHER_CLUSTER", "PUSHER_APP_CLUSTER"),
    "host": ("PUSHER_HOST",),
    "port": ("PUSHER_PORT",),
    "tls": ("PUSHER_TLS",),
    "encryption_master_key": ("PUSHER_ENCRYPTION_MASTER_KEY",),
    "interval": ("PUSHER_INTERVAL",),
    "timeout": ("PUSHER_TIMEOUT",),
}
"""Fields of `PusherSettings` and their variables; the first that is set counts, the others are names of other tools."""
_PUSHER_WORDS: Final = {
    "PUSHER_APP_ID": "must be digits, as the dashboard shows it",
    "PUSHER_HOST": "must be a host name without a scheme and a path",
}
_AUTH_VERSION: Final = "PUSHER_AUTH_VERSION"
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
    client: ClientSettings
    log: LogSettings
    chosen: frozenset[str]
    """The settings that were given, by `option_name`; the others are defaults."""


COMPONENTS: Final[tuple[type[Settings], ...]] = (
    RedisSettings,
    JobLimits,
    Retention,
    WorkerSettings,
    RelaySettings,
    TokenSettings,
    LLMSettings,
    ClientSettings,
    LogSettings,
)


def option_name(field: str) -> str:
    """The name of a setting as a flag (with dashes) and as an argument of `load`: `url` alone would say too little."""
    return "redis_url" if field == "url" else field


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return _NAMED_OTHERWISE.get(field, PREFIX + field.upper())


def load(
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    called: Callable[[str], str] = str,
) -> Configuration:
    """Read all settings.

    :param env: the environment; that of this process when left out.
    :param overrides: settings that win over the environment, by `option_name`; text is read as a variable's would be.
    :param called: how an error names an override (a command line puts dashes before it).
    :raises ConfigurationError: names each variable or override that is wrong, and its rule; never shows a value.
    """
    env = os.environ if env is None else env
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    problems = [*_unknown_variables(env), *_unknown_overrides(given, called)]
    reader = _Reader(env, given, called, problems)
    providers = _providers(env, problems)
    loaded = Configuration(
        redis=reader.read(RedisSettings),
        limits=reader.read(JobLimits),
        retention=reader.read(Retention),
        worker=reader.read(WorkerSettings),
        relay=reader.read(RelaySettings),
        tokens=reader.read(TokenSettings),
        pusher=_pusher(env, problems),
        llm=reader.read(LLMSettings, providers=providers),
        client=reader.read(ClientSettings),
        log=reader.read(LogSettings),
        chosen=frozenset(reader.chosen),
    )
    if loaded.llm.default_provider not in {**PROVIDERS, **providers}:
        name = called("default_provider") if "default_provider" in given else variable("default_provider")
        problems.append(f"{name}: must be one of {', '.join(sorted({**PROVIDERS, **providers}))}")
    if problems:
        raise ConfigurationError("\n".join(problems))
    return loaded


@dataclass(frozen=True, slots=True)
class _Reader:
    env: Mapping[str, str]
    given: Mapping[str, object]
    called: Callable[[str], str]
    problems: list[str]
    chosen: set[str] = field(default_factory=set)

    def read(self, component: type[S], **more: object) -> S:
        """One component's settings; what is wrong goes to `problems`, and the defaults stand in for it."""
        values: dict[str, object] = dict(more)
        names: dict[str, str] = {}
        for setting in _fields(component):
            name = option_name(setting)
            if name in self.given:
                names[setting], value = self.called(name), self.given[name]
            elif self.env.get(variable(setting), "").strip():
                names[setting], value = variable(setting), self.env[variable(setting)]
            else:
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


def _fields(component: type[Settings]) -> Iterator[str]:
    """The fields that one variable can hold. Providers have variables of their own."""
    return (name for name in component.model_fields if name != "providers")


def _is_list(component: type[Settings], field: str) -> bool:
    return get_origin(component.model_fields[field].annotation) is tuple


def _split(component: type[Settings], field: str, text: str) -> object:
    if not _is_list(component, field):
        return text
    return tuple(part.strip() for part in text.split(",") if part.strip())


def known_variables() -> list[str]:
    """Every `DELTAFAN_*` variable, and `REDIS_URL`."""
    names = [variable(field) for component in COMPONENTS for field in _fields(component)]
    return [*names, variable("providers")]


def _unknown_variables(env: Mapping[str, str]) -> Iterator[str]:
    known = known_variables()
    for name in sorted(env):
        if not name.startswith(PREFIX) or name.startswith(_TEST_PREFIX) or name in (*known, *_NOT_SETTINGS):
            continue
        yield f"{name}: is not a setting{_guess(name, known)}"


def _unknown_overrides(given: Mapping[str, object], called: Callable[[str], str]) -> Iterator[str]:
    known = [option_name(field) for component in COMPONENTS for field in _fields(component)]
    for name in given:
        if name not in known:
            yield f"{called(name)}: is not a setting{_guess(called(name), [called(other) for other in known])}"


def _guess(name: str, known: Sequence[str]) -> str:
    """The setting that was meant, most likely. What all names begin with says nothing about that."""
    ends = {other.removeprefix(PREFIX): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), ends, n=1, cutoff=0.5)
    return f"; did you mean {ends[near[0]]}?" if near else ""


def _providers(env: Mapping[str, str], problems: list[str]) -> dict[str, ProviderSettings]:
    """What the environment says of providers: those of the table, and those that `DELTAFAN_PROVIDERS` names."""
    own = [name.strip() for name in env.get(variable("providers"), "").split(",") if name.strip()]
    found: dict[str, ProviderSettings] = {}
    for name in dict.fromkeys((*PROVIDERS, *own)):
        if not name.replace("-", "").replace("_", "").isalnum() or name != name.lower() or not name.isascii():
            problems.append(f"{variable('providers')}: a name is lower case letters, digits, - and _")
            continue
        stem = name.upper().replace("-", "_")
        url = env.get(f"{stem}_BASE_URL", "").strip() or None
        names = PROVIDERS[name].key_names if name in PROVIDERS else (f"{stem}_API_KEY",)
        key = next((env[key].strip() for key in names if env.get(key, "").strip()), None)
        if url is not None and not url.startswith(("http://", "https://")):
            problems.append(f"{stem}_BASE_URL: must begin with http:// or https://")
        elif name not in PROVIDERS and url is None:
            problems.append(f"{stem}_BASE_URL: is required for a provider that {variable('providers')} names")
        elif url is not None or key is not None:
            found[name] = ProviderSettings(base_url=url, api_key=SecretStr(key) if key else None)
    return found


def _pusher(env: Mapping[str, str], problems: list[str]) -> PusherSettings:
    """What the environment says of Pusher."""
    names: dict[str, str] = {}
    for setting, variables in _PUSHER.items():
        found = next((name for name in variables if env.get(name, "").strip()), None)
        if found is not None:
            names[setting] = found
    if env.get(_AUTH_VERSION, "1.0").strip() not in ("", "1.0"):
        problems.append(f"{_AUTH_VERSION}: must be 1.0, the only version there is")
    try:
        return PusherSettings.model_validate({setting: env[name].strip() for setting, name in names.items()})
    except PydanticError as error:
        for finding in error.errors(include_url=False, include_context=False, include_input=False):
            where = "".join(f"{names.get(str(part), str(part))}: " for part in finding["loc"])
            rule = finding["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
            problems.append(f"{where}{_PUSHER_WORDS.get(where.partition(':')[0], rule)}")
        return PusherSettings()


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
    fields = {option_name(field): field for component in COMPONENTS for field in _fields(component)}
    return {variable(fields[name]): str(value) for name, value in overrides.items() if value is not None}
