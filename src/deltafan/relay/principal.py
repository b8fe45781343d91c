"""Who asks, and what they may: what `access` finds out and handlers go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from deltafan.relay.answers import Refusal
from deltafan.relay.keys import DEFAULT_TENANT, RIGHTS, Right
from deltafan.tokens import Grant, Hidden

REALM: Final = 'Bearer realm="deltafan"'


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of an API key or of a stream token, or anybody on this machine while the relay is open."""

    tenant: str
    rights: frozenset[str]
    name: str | None = None
    """What limits count it by: a key, a subject or a grant. `None` is anybody, who is not limited."""
    grant: Grant | None = None
    """What a stream token allows, and no more; `None`: all jobs of the tenant."""

    @property
    def hide(self) -> frozenset[Hidden]:
        return self.grant.hide if self.grant is not None else frozenset()


ANYBODY: Final = Principal(DEFAULT_TENANT, frozenset(RIGHTS))
"""Who asks an open relay, which serves this machine only."""
PRINCIPAL: Final = web.RequestKey("principal", Principal)


def principal_of(request: web.Request) -> Principal:
    """:raises Refusal: 401, when nobody has been let in here, whatever the address."""
    found: Principal | None = request.get(PRINCIPAL)
    if found is None:
        raise Refusal(401, "this needs an API key or a stream token", headers={"WWW-Authenticate": REALM})
    return found


def require(request: web.Request, right: Right, *, all_jobs: bool = False) -> Principal:
    """Who asks, when they have a right.

    :param all_jobs: it is about all jobs of a tenant, which no stream token allows.
    :raises Refusal: 403, when they have it not; 401 when nobody was let in.
    """
    principal = principal_of(request)
    if right not in principal.rights or (all_jobs and principal.grant is not None):
        needed = "an API key" if all_jobs else "an API key or a stream token"
        raise Refusal(
            403,
            f"this needs {needed} with the right to {right}",
            headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope"'},
        )
    return principal
