"""Whose a channel is, on a Redis and a Pusher app that several tenants share.

A channel whose name begins with `<tenant>@` (after `private-` and the like) is that tenant's; any other is `default`'s.
Tenants are those with API keys and those that `DELTAFAN_TENANTS` names. Where there is but one, there is nobody to keep
apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from deltafan.channels import bare
from deltafan.errors import FieldError, ValidationError
from deltafan.job import JobSpec
from deltafan.relay.keys import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Ownership:
    tenants: frozenset[str]

    def is_of(self, tenant: str, channel: str) -> bool:
        """Whether a channel is a tenant's. A job's own channel is its job's: look at that instead."""
        owner, at, _ = bare(channel).partition("@")
        if at and owner == tenant:
            return True
        if len(self.tenants) <= 1:
            return tenant in self.tenants or not self.tenants
        return tenant == (owner if at and owner in self.tenants else DEFAULT_TENANT)

    def check(self, tenant: str, spec: JobSpec) -> None:
        """:raises ValidationError: naming the channels of a job that are another tenant's."""
        named = [] if spec.channel is None else [("channel", spec.channel)]
        named += [(f"pusher_channels[{place}]", name) for place, name in enumerate(spec.pusher_channels)]
        rule = "is another tenant's: " + (
            "it begins with that tenant's name and @"
            if tenant == DEFAULT_TENANT
            else f"yours begin with {tenant}@ (after private- and the like)"
        )
        wrong = [FieldError(field, rule) for field, name in named if not self.is_of(tenant, name)]
        if wrong:
            raise ValidationError(wrong)
