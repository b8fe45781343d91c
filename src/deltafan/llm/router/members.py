"""The deployments by name, and those of names that nobody has listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.llm.router.deployment import Deployment, Member
from deltafan.llm.router.health import Health, Rules

MAX_UNLISTED: Final = 1000
"""Names that nobody has listed whose health is remembered: callers choose them."""


class Members:
    """:param unlisted: a name that is not listed is a deployment of its own.

    :raises ConfigurationError: two deployments have one id.
    """

    def __init__(self, deployments: Sequence[Deployment], rules: Rules, *, unlisted: bool) -> None:
        self._rules = rules
        self._takes_unlisted = unlisted
        self._unlisted: dict[str, Member] = {}
        self._listed: dict[str, list[Member]] = {}
        ids: set[str] = set()
        for one in deployments:
            name = one.name or one.model
            group = self._listed.setdefault(name, [])
            made = replace(one, name=name, id=one.id or f"{name}#{len(group) + 1}")
            if made.id in ids:
                raise ConfigurationError(f"deployments: two have the id {made.id}")
            ids.add(made.id)
            group.append(Member(made, Health(rules)))

    def all(self) -> list[Member]:
        return [member for group in (*self._listed.values(), self._unlisted.values()) for member in group]

    def deployments(self) -> list[Deployment]:
        """Those that are listed."""
        return [member.deployment for group in self._listed.values() for member in group]

    def listed(self, name: str) -> Sequence[Member]:
        return self._listed.get(name, ())

    def of(self, name: str) -> Sequence[Member]:
        """The deployments of a name; none, if it is not known."""
        if name in self._listed or not self._takes_unlisted:
            return self.listed(name)
        member = self._unlisted.pop(name, None) or Member(Deployment(name, name, id=name), Health(self._rules))
        self._unlisted[name] = member  # the one used last is last
        if len(self._unlisted) > MAX_UNLISTED:
            del self._unlisted[next(iter(self._unlisted))]
        return (member,)

    def name_of(self, deployment: str) -> str | None:
        """The name of the deployment with this id; `None` if there is none."""
        known = (member.deployment for member in self.all())
        return next((one.name for one in known if one.id == deployment), None)

    def check(self, name: str, where: str = "") -> None:
        """:raises CompletionError: `model_not_found`: there is no such name, and here are those that there are."""
        if name in self._listed or (self._takes_unlisted and name):
            return
        there = ", ".join(sorted(self._listed)) or "none"
        raise CompletionError("model_not_found", f"{where}no deployment has the name {name!r}; there is: {there}")
