"""deltafan: event streaming for web apps that use LLMs.

    from deltafan import AsyncQueue

    async with AsyncQueue() as queue:
        job = await queue.enqueue(model="gpt-5-mini", prompt="Hello")
        async for event in job.events():
            ...

Names are loaded when they are first used, so that `import deltafan` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltafan.broker.blocking import Job
    from deltafan.broker.cancel import CancelOutcome
    from deltafan.broker.listing import JobPage
    from deltafan.broker.queue import AsyncJob, JobResult
    from deltafan.broker.status import JobStatus
    from deltafan.client import OpenAIClient, PusherSink
    from deltafan.errors import (
        BrokerUnavailable,
        CompletionError,
        ConfigurationError,
        ConflictError,
        DeltafanError,
        FieldError,
        JobFailed,
        JobNotFound,
        LogExpired,
        QueueFull,
        ValidationError,
    )
    from deltafan.events import (
        Done,
        Error,
        Event,
        EventId,
        Meta,
        ReasoningDelta,
        RefusalDelta,
        TextDelta,
        ToolCallDelta,
        ToolResult,
        Usage,
    )
    from deltafan.job import JobSpec
    from deltafan.llm.tools import Tool, tool
    from deltafan.queues import AsyncQueue, Queue
    from deltafan.settings import PusherSettings, TokenSettings
    from deltafan.sinks.base import JobInfo, Sink, SinkFactory, SinkUnavailable, Undeliverable
    from deltafan.sinks.memory import MemorySink
    from deltafan.sinks.redis_channel import RedisChannelSink
    from deltafan.transcript import Transcript
    from deltafan.worker import run_worker

    __version__: str

__all__ = [
    "AsyncJob",
    "AsyncQueue",
    "BrokerUnavailable",
    "CancelOutcome",
    "CompletionError",
    "ConfigurationError",
    "ConflictError",
    "DeltafanError",
    "Done",
    "Error",
    "Event",
    "EventId",
    "FieldError",
    "Job",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobPage",
    "JobResult",
    "JobSpec",
    "JobStatus",
    "LogExpired",
    "MemorySink",
    "Meta",
    "OpenAIClient",
    "PusherSettings",
    "PusherSink",
    "Queue",
    "QueueFull",
    "ReasoningDelta",
    "RedisChannelSink",
    "RefusalDelta",
    "Sink",
    "SinkFactory",
    "SinkUnavailable",
    "TextDelta",
    "TokenSettings",
    "Tool",
    "ToolCallDelta",
    "ToolResult",
    "Transcript",
    "Undeliverable",
    "Usage",
    "ValidationError",
    "__version__",
    "run_worker",
    "tool",
]

_HOMES = {
    "broker.blocking": ("Job",),
    "broker.cancel": ("CancelOutcome",),
    "broker.listing": ("JobPage",),
    "broker.queue": ("AsyncJob", "JobResult"),
    "broker.status": ("JobStatus",),
    "client": ("OpenAIClient", "PusherSink"),
    "errors": (
        "BrokerUnavailable",
        "CompletionError",
        "ConfigurationError",
        "ConflictError",
        "DeltafanError",
        "FieldError",
        "JobFailed",
        "JobNotFound",
        "LogExpired",
        "QueueFull",
        "ValidationError",
    ),
    "events": (
        "Done",
        "Error",
        "Event",
        "EventId",
        "Meta",
        "ReasoningDelta",
        "RefusalDelta",
        "TextDelta",
        "ToolCallDelta",
        "ToolResult",
        "Usage",
    ),
    "job": ("JobSpec",),
    "llm.tools": ("Tool", "tool"),
    "queues": ("AsyncQueue", "Queue"),
    "settings": ("PusherSettings", "TokenSettings"),
    "sinks.base": ("JobInfo", "Sink", "SinkFactory", "SinkUnavailable", "Undeliverable"),
    "sinks.memory": ("MemorySink",),
    "sinks.redis_channel": ("RedisChannelSink",),
    "transcript": ("Transcript",),
    "worker": ("run_worker",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("deltafan")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
