"""Who is asked, and who next, for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltafan.llm.router.deployment import Member
from deltafan.llm.router.strategy import Strategy, choose


class Plan:
    """The names to try, in order, each with its deployments. Nobody is asked twice."""

    def __init__(self, names: Sequence[str], members: Callable[[str], Sequence[Member]], strategy: Strategy) -> None:
        self._names = list(dict.fromkeys(names))
        self._members = members
        self._strategy = strategy
        self._tried: set[str] = set()
        self._current = ""

    def next(self, now: float) -> Member | None:
        """The next to ask. `None`: all were asked.

        Those that cool down are passed over. When all do, the one whose cooldown ends first is asked all the same: a
        request is not refused before anybody was asked.
        """
        for name in self._names:
            left = self._left(name)
            ready = [member for member in left if member.health.available(now)]
            if ready:
                within = [member for member in ready if member.within(now)]
                return self._take(name, choose(within or ready, self._strategy, now))
        if self._tried:
            return None
        cooling = [
            (member.health.ready_at, place, name, member)
            for place, name in enumerate(self._names)
            for member in self._left(name)
        ]
        if not cooling:
            return None
        _, _, name, member = min(cooling, key=lambda entry: entry[:2])
        return self._take(name, member)

    def leave(self, instead: Sequence[str] | None) -> None:
        """Ask nobody else of the name that was asked last: others of it would say the same.

        :param instead: the names to go on with; the plan's own when left out.
        """
        if instead is None:
            self._names = [name for name in self._names if name != self._current]
        else:
            self._names = list(dict.fromkeys(instead))

    def _left(self, name: str) -> list[Member]:
        return [member for member in self._members(name) if member.deployment.id not in self._tried]

    def _take(self, name: str, member: Member) -> Member:
        self._current = name
        self._tried.add(member.deployment.id)
        return member
