"""What a worker's jobs share, besides Redis: the models, the sinks, the tools, the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deltafan.broker.connections import Connections
from deltafan.broker.log import read_page
from deltafan.errors import CompletionError
from deltafan.events import Event, EventId
from deltafan.job import JobSpec
from deltafan.llm import Completions, LLMSettings
from deltafan.llm.agent import ToolLoop
from deltafan.llm.compose import Ring
from deltafan.llm.router import Failover, Router
from deltafan.llm.tools import Tool
from deltafan.settings import JobLimits, Retention, WorkerSettings
from deltafan.sinks.base import JobInfo, SinkFactory
from deltafan.sinks.fanout import CatchUp, SinkRunner, Start
from deltafan.telemetry.hooks import Hook, Signal, silent


@dataclass(frozen=True, slots=True)
class Services:
    """`sinks` and `tools` are what an operator registered, by the names that jobs use."""

    completions: Completions
    """The models: an operator's `Router`, or what takes any model, and then gets a router for jobs' fallbacks."""
    settings: WorkerSettings = field(default_factory=WorkerSettings)
    llm: LLMSettings = field(default_factory=LLMSettings)
    retention: Retention = field(default_factory=Retention)
    limits: JobLimits = field(default_factory=JobLimits)
    sinks: Mapping[str, SinkFactory] = field(default_factory=dict)
    tools: Mapping[str, Tool] = field(default_factory=dict)
    hook: Hook = silent
    around: Ring | None = None
    """What goes around the router, inside of a job's tools: the cache."""
    _models: Completions = field(init=False, repr=False, compare=False)
    _router: Router = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        router = self.completions
        if not isinstance(router, Router):
            router = Router((), completions=router, unlisted=True, settings=self.llm, on_failover=self._failed_over)
        object.__setattr__(self, "_router", router)
        object.__setattr__(self, "_models", self.around(router) if self.around else router)

    def provider_of(self, model: str) -> tuple[str, bool]:
        """The provider that a model name chooses, and whether it can go on from given text."""
        return self._router.provider_of(model)

    def completions_for(self, spec: JobSpec) -> Completions:
        """The models, with the job's tools around them."""
        if not spec.tools:
            return self._models
        return ToolLoop(self._models, [self.tools[name] for name in spec.tools])

    def _failed_over(self, failover: Failover) -> None:
        if failover.to is not None:
            fields = {"model": failover.deployment, "code": failover.error.code, "to": failover.to}
            self.hook(Signal("llm.failover", "warning", fields | {"visible": failover.visible}))

    def tool_problem(self, spec: JobSpec) -> CompletionError | None:
        missing = [name for name in spec.tools if name not in self.tools]
        if not missing:
            return None
        has = ", ".join(sorted(self.tools)) or "none"
        return CompletionError("bad_request", f"tools: this worker has no {', '.join(missing)} (it has: {has})")

    def runners(
        self,
        job: JobInfo,
        names: Sequence[str],
        connections: Connections,
        start: Callable[[str], Start],
    ) -> list[SinkRunner]:
        """A runner for each of a job's sinks.

        :param start: where each begins, by its name.
        """
        catch_up = log_reader(connections, job.id)
        return [SinkRunner(name, self.sinks[name], job, catch_up, self.hook, start(name)) for name in names]


def job_info(job_id: str, tenant: str, spec: JobSpec) -> JobInfo:
    """What the sinks of a job may know of it."""
    return JobInfo(job_id, tenant, spec.channel, spec.metadata, spec.channels_on_pusher(job_id), spec.subject)


def log_reader(connections: Connections, job_id: str) -> CatchUp:
    async def read(after: EventId | None) -> Sequence[Event]:
        page = await read_page(connections.commands, job_id, after)
        return [event for entry in page.entries if (event := entry.event()) is not None]

    return read
