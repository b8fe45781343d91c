"""What a program has set for its whole process, with `deltafan.configure`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType

from pydantic import SecretStr

from deltafan.llm.settings import ProviderSettings


@dataclass(frozen=True, slots=True)
class Configured:
    """A value: it is replaced, never changed, so that whoever reads it sees one state."""

    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """By `option_name`."""
    providers: Mapping[str, ProviderSettings] = field(default_factory=lambda: MappingProxyType({}))

    def with_changes(
        self,
        settings: Mapping[str, object],
        api_keys: Mapping[str, str | None],
        base_urls: Mapping[str, str | None],
    ) -> Configured:
        """These changes on top. `None` takes a value back."""
        providers = dict(self.providers)
        for name, key in api_keys.items():
            providers[name] = _changed(providers.get(name), api_key=SecretStr(key) if key else None)
        for name, url in base_urls.items():
            providers[name] = _changed(providers.get(name), base_url=url or None)
        kept = {name: value for name, value in {**self.settings, **settings}.items() if value is not None}
        return replace(
            self,
            settings=MappingProxyType(kept),
            providers=MappingProxyType({n: p for n, p in providers.items() if p != ProviderSettings()}),
        )


def _changed(provider: ProviderSettings | None, **changes: object) -> ProviderSettings:
    return (provider or ProviderSettings()).model_copy(update=changes)


class _Process:
    def __init__(self) -> None:
        self.lock = Lock()
        self.configured = Configured()


_process = _Process()


def configured() -> Configured:
    """What is set now."""
    return _process.configured


def change(
    settings: Mapping[str, object], api_keys: Mapping[str, str | None], base_urls: Mapping[str, str | None]
) -> None:
    """Set these, from any thread; what is not named stays."""
    with _process.lock:
        _process.configured = _process.configured.with_changes(settings, api_keys, base_urls)
