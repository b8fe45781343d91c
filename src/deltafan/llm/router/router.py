"""The ring that chooses among deployments, and goes over to another when one fails."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Self, get_args
from uuid import uuid4

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.events import Done, Event, Meta, Usage
from deltafan.llm.providers import provider_facts, split_model
from deltafan.llm.request import Request
from deltafan.llm.router.attempt import Attempt
from deltafan.llm.router.deployment import Deployment, DeploymentStatus, Member
from deltafan.llm.router.health import Rules
from deltafan.llm.router.members import Members
from deltafan.llm.router.output import MidStream, Output, Turnover
from deltafan.llm.router.places import digest
from deltafan.llm.router.plan import Plan
from deltafan.llm.router.strategy import Strategy
from deltafan.llm.seam import Completions, Started
from deltafan.llm.settings import LLMSettings

Names = Mapping[str, Sequence[str]]
"""For a name, those to go on with, in order."""

FALLS_OVER: Final = frozenset(
    {
        "connection",
        "server_error",
        "malformed_stream",
        "timeout_first_token",
        "timeout_stall",
        "rate_limit",
        "quota",
        "authentication",
        "permission",
        "model_not_found",
        "context_length",
        "content_filter",
    }
)
"""Failures after which somebody else is asked: of the deployment, its key, its money or its model. Not `bad_request`:
the request is wrong everywhere. Not `timeout_total`: the time is up. `context_length` and `content_filter` are the
model's own answer: the other deployments of its name are passed over."""


_OPTIONS: Final = ("fallbacks", "mid_stream")


@dataclass(frozen=True, slots=True)
class Failover:
    """A deployment has failed a request."""

    model: str
    """What was asked for."""
    deployment: str
    error: CompletionError
    to: str | None
    """The deployment that is asked next; `None`: the failure stands."""
    visible: bool
    """Something of the answer had been streamed."""


class Router:
    """A ring that asks one of several deployments of a name, and goes over to others when it fails.

    First the others of the name, then those of its fallbacks, in order; each once. Before the first visible delta
    nobody notices. After it, `mid_stream` decides, and the reader is told by a `Meta` in mid-stream. Nobody else is
    asked after a failure that is not in `FALLS_OVER`. When all have failed, the first failure that may pass is raised,
    or else the first; its `usage` is the sum. The usage of failed requests is part of the answer's `Usage`.

    `Request.options` may bring `fallbacks` (names, in place of the router's) and `mid_stream` for one request.
    `Request.timeout` bounds all of it together.

    :param completions: asks the deployments that bring none of their own.
    :param unlisted: a model that is not listed is asked of `completions` as it is; else it is an error.
    :param fallbacks: for a name, the names to try when all its deployments have failed.
    :param context_fallbacks: the same for requests that are too long, in place of `fallbacks`.
    :param content_fallbacks: the same for what a content filter refused; also for an answer that it cut off.
    :param rules: when a deployment cools down.
    :param settings: which providers there are besides the table's.
    :param on_failover: told of each failure.
    :param clock: seconds, by which cooldowns and latencies are measured.
    :raises ConfigurationError: two deployments have one id, a fallback is no name, an option is not one.
    """

    def __init__(
        self,
        deployments: Sequence[Deployment],
        *,
        completions: Completions | None = None,
        unlisted: bool = False,
        strategy: Strategy = "weighted",
        mid_stream: MidStream = "restart",
        fallbacks: Names | None = None,
        context_fallbacks: Names | None = None,
        content_fallbacks: Names | None = None,
        rules: Rules | None = None,
        settings: LLMSettings | None = None,
        on_failover: Callable[[Failover], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = Members(deployments, rules or Rules(), unlisted=unlisted)
        self._completions = completions
        self._own: Callable[[Completions], Completions] | None = None
        self._salt = uuid4().hex
        self._strategy: Strategy = strategy
        self._mid_stream: MidStream = mid_stream
        self._fallbacks = dict(fallbacks or {})
        self._context = dict(context_fallbacks or {})
        self._content = dict(content_fallbacks or {})
        self._settings = settings
        self._models = None if settings is None else settings.models
        self._on_failover = on_failover
        self._clock = clock
        self._check(unlisted)

    def status(self) -> list[DeploymentStatus]:
        """How every deployment does now."""
        now = self._clock()
        return [member.status(now) for member in self._members.all()]

    def name_of(self, deployment: str) -> str | None:
        """The name that the deployment with this id answers to; `None` if there is none."""
        return self._members.name_of(deployment)

    @property
    def digest(self) -> str:
        """Of where its deployments ask, for the namespace of a cache: the same name in another router may be another
        model. Empty without listed deployments: then a name says all."""
        return digest(self._members.deployments(), self._settings, self._salt)

    def using(self, completions: Completions, own: Callable[[Completions], Completions] | None = None) -> Self:
        """This router, its deployments' health shared, that asks those without completions of their own by these.

        :param own: a ring that goes around the others' own completions.
        """
        other = copy.copy(self)
        other._completions = completions
        other._own = own
        return other

    def provider_of(self, model: str) -> tuple[str, bool]:
        """The provider that a name stands for (of its first deployment), and whether all of it take a prefill."""
        deployments = [member.deployment for member in self._members.listed(model)]
        provider, _ = split_model(deployments[0].model if deployments else model, self._settings)
        if not deployments:
            return provider, provider_facts(provider).prefill != "none"
        return provider, all(self._can_prefill(one) for one in deployments)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Completions.stream`. A `Meta` in mid-stream says that what follows is from another deployment."""
        plan, policy = self._plan(request)
        ends = None if request.timeout is None else asyncio.get_running_loop().time() + request.timeout
        options = {name: value for name, value in request.options.items() if name not in _OPTIONS}
        output = Output(request.prefix)
        spent: Usage | None = None
        failures: list[CompletionError] = []
        member = plan.next(self._clock())
        while member is not None:
            one = member.deployment
            asked = replace(request, model=one.model, timeout=_left(ends), options=options)
            can_prefill = request.api == "chat" and self._can_prefill(one)
            turnover = output.turn_over(asked, policy, can_prefill)
            attempt = self._attempt(member, turnover.request, filtered=request.model in self._content)
            before = output.chars
            try:
                async with aclosing(_told(attempt, turnover, one, self._settings)) as events:
                    async for event in events:
                        match event:
                            case Usage():
                                event = event if spent is None else spent + event
                            case Meta(continued=False):
                                output.clear()
                            case Meta() | Started() | Done():
                                pass
                            case _:
                                output.add(event)
                        yield event
                return
            except CompletionError as error:
                failures.append(error)
                used = await attempt.spent(error, output.chars - before, self._models)
                if used is not None:
                    spent = used if spent is None else spent + used
            failed, member = member, self._next(plan, request.model, failures[-1], output, policy, ends)
            self._tell(request, failed, failures[-1], member, output)
        raise _worst(failures, spent)

    def _plan(self, request: Request) -> tuple[Plan, MidStream]:
        self._members.check(request.model)
        policy = request.options.get("mid_stream", self._mid_stream)
        if policy not in get_args(MidStream):
            raise CompletionError("bad_request", f"mid_stream: must be one of {', '.join(get_args(MidStream))}")
        fallbacks = request.options.get("fallbacks")
        if fallbacks is None:
            fallbacks = self._fallbacks.get(request.model, ())
        if not _are_names(fallbacks):
            raise CompletionError("bad_request", "fallbacks: must be a list of models")
        for name in fallbacks:
            self._members.check(name, "fallbacks: ")
        return Plan([request.model, *fallbacks], self._members.of, self._strategy), policy

    def _attempt(self, member: Member, request: Request, *, filtered: bool) -> Attempt:
        completions = member.deployment.completions
        if completions is None:
            completions = self._completions
        elif self._own is not None:
            completions = self._own(completions)
        assert completions is not None  # noqa: S101 - `_check` has seen to it
        return Attempt(member, completions, request, self._clock, filtered=filtered)

    def _next(
        self,
        plan: Plan,
        name: str,
        error: CompletionError,
        output: Output,
        policy: MidStream,
        ends: float | None,
    ) -> Member | None:
        """Who is asked after a failure."""
        if error.code not in FALLS_OVER or (output.visible and policy == "fail"):
            return None
        if ends is not None and asyncio.get_running_loop().time() >= ends:
            return None
        if error.code in ("context_length", "content_filter"):
            specific = self._context if error.code == "context_length" else self._content
            plan.leave(specific.get(name))
        return plan.next(self._clock())

    def _tell(
        self, request: Request, failed: Member, error: CompletionError, to: Member | None, output: Output
    ) -> None:
        if self._on_failover is not None:
            next_id = None if to is None else to.deployment.id
            self._on_failover(Failover(request.model, failed.deployment.id, error, next_id, output.visible))

    def _can_prefill(self, one: Deployment) -> bool:
        if one.prefill is not None:
            return one.prefill
        provider, _ = split_model(one.model, self._settings)
        return provider_facts(provider).prefill != "none"

    def _check(self, unlisted: bool) -> None:
        if self._strategy not in get_args(Strategy):
            raise ConfigurationError(f"strategy: must be one of {', '.join(get_args(Strategy))}")
        if self._mid_stream not in get_args(MidStream):
            raise ConfigurationError(f"mid_stream: must be one of {', '.join(get_args(MidStream))}")
        if self._completions is None:
            if unlisted:
                raise ConfigurationError("unlisted: needs `completions` to ask")
            for member in self._members.all():
                if member.deployment.completions is None:
                    raise ConfigurationError(
                        f"deployment {member.deployment.id}: needs completions, or the router does"
                    )
        options = {"fallbacks": self._fallbacks, "context_fallbacks": self._context, "content_fallbacks": self._content}
        for option, names in options.items():
            for name, others in names.items():
                if not _are_names(others):
                    raise ConfigurationError(f"{option}[{name!r}]: must be a list of names")
                for other in (name, *others):
                    try:
                        self._members.check(other, f"{option}: ")
                    except CompletionError as error:
                        raise ConfigurationError(error.message) from None


async def _told(
    attempt: Attempt, turnover: Turnover, one: Deployment, settings: LLMSettings | None
) -> AsyncGenerator[Event, None]:
    """An attempt's events; the reader is told of the turnover when the first of them comes, not before: it may fail."""
    started: Started | None = None
    waiting = True
    async with aclosing(attempt.events()) as events:
        async for event in events:
            if waiting and isinstance(event, Started):
                started = event
                continue
            if waiting:
                waiting = False
                if turnover.tell is not None:
                    yield _meta(turnover, one, started, settings)
                if started is not None:
                    yield started
            yield event


def _meta(turnover: Turnover, one: Deployment, started: Started | None, settings: LLMSettings | None) -> Meta:
    provider, model = split_model(one.model, settings)
    if started is not None:
        provider, model = started.provider or provider, started.model or model
    return Meta(
        model=model,
        provider=provider,
        created=time.time_ns() // 1_000_000,
        restart=turnover.tell == "restart",
        continued=turnover.tell == "continued",
    )


def _left(ends: float | None) -> float | None:
    return None if ends is None else max(0.001, ends - asyncio.get_running_loop().time())


def _worst(failures: Sequence[CompletionError], spent: Usage | None) -> CompletionError:
    """The failure to raise: one that may pass says that the request may be tried again."""
    error = next((failure for failure in failures if failure.retryable), failures[0])
    error.usage = spent
    return error


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
