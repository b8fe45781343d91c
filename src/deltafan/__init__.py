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
    from deltafan.client import (
        Choice,
        Embeddings,
        OpenAIClient,
        PusherSink,
        Result,
        SyncClient,
        iter_batch,
        run_batch,
    )
    from deltafan.client.litellm import (
        AsyncChunks,
        Chunks,
        acompletion,
        aembedding,
        completion,
        completion_cost,
        embedding,
        exceptions,
        token_counter,
    )
    from deltafan.client.router import Router
    from deltafan.errors import (
        APIConnectionError,
        APIError,
        AuthenticationError,
        BadRequestError,
        BrokerUnavailable,
        CompletionError,
        ConfigurationError,
        ConflictError,
        ContentPolicyViolationError,
        ContextWindowExceededError,
        DeltafanError,
        FieldError,
        InternalServerError,
        JobFailed,
        JobNotFound,
        LogExpired,
        NotFoundError,
        PermissionDeniedError,
        QueueFull,
        RateLimitError,
        ServiceUnavailableError,
        Timeout,
        TokenExpired,
        TokenInvalid,
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
    from deltafan.llm.agent import AgentResult, AgentRunner, Step, ToolLoop
    from deltafan.llm.cache import Cache, Cached, CacheError, warm_cache
    from deltafan.llm.limits import Budget, Limited, Limiter, TokenBucket
    from deltafan.llm.profiles import (
        GPT5,
        GPT5Mini,
        GPT5Nano,
        GPT5Point1,
        GPT5Point2,
        ModelProfile,
        Price,
        TextEmbedding3Large,
        TextEmbedding3Small,
        find_profile,
    )
    from deltafan.llm.router import Deployment, Failover, Rules
    from deltafan.llm.tokens import TokenCount, count_tokens
    from deltafan.llm.tools import Tool, tool
    from deltafan.llm.usage import parse_usage
    from deltafan.queues import AsyncQueue, Queue
    from deltafan.settings import PusherSettings, TokenSettings
    from deltafan.sinks.base import JobInfo, Sink, SinkFactory, SinkUnavailable, Undeliverable
    from deltafan.sinks.memory import MemorySink
    from deltafan.sinks.redis_channel import RedisChannelSink
    from deltafan.transcript import Transcript
    from deltafan.wiring import configure
    from deltafan.worker import run_worker

    __version__: str

__all__ = [
    "GPT5",
    "APIConnectionError",
    "APIError",
    "AgentResult",
    "AgentRunner",
    "AsyncChunks",
    "AsyncJob",
    "AsyncQueue",
    "AuthenticationError",
    "BadRequestError",
    "BrokerUnavailable",
    "Budget",
    "Cache",
    "CacheError",
    "Cached",
    "CancelOutcome",
    "Choice",
    "Chunks",
    "CompletionError",
    "ConfigurationError",
    "ConflictError",
    "ContentPolicyViolationError",
    "ContextWindowExceededError",
    "DeltafanError",
    "Deployment",
    "Done",
    "Embeddings",
    "Error",
    "Event",
    "EventId",
    "Failover",
    "FieldError",
    "GPT5Mini",
    "GPT5Nano",
    "GPT5Point1",
    "GPT5Point2",
    "InternalServerError",
    "Job",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobPage",
    "JobResult",
    "JobSpec",
    "JobStatus",
    "Limited",
    "Limiter",
    "LogExpired",
    "MemorySink",
    "Meta",
    "ModelProfile",
    "NotFoundError",
    "OpenAIClient",
    "PermissionDeniedError",
    "Price",
    "PusherSettings",
    "PusherSink",
    "Queue",
    "QueueFull",
    "RateLimitError",
    "ReasoningDelta",
    "RedisChannelSink",
    "RefusalDelta",
    "Result",
    "Router",
    "Rules",
    "ServiceUnavailableError",
    "Sink",
    "SinkFactory",
    "SinkUnavailable",
    "Step",
    "SyncClient",
    "TextDelta",
    "TextEmbedding3Large",
    "TextEmbedding3Small",
    "Timeout",
    "TokenBucket",
    "TokenCount",
    "TokenExpired",
    "TokenInvalid",
    "TokenSettings",
    "Tool",
    "ToolCallDelta",
    "ToolLoop",
    "ToolResult",
    "Transcript",
    "Undeliverable",
    "Usage",
    "ValidationError",
    "__version__",
    "acompletion",
    "aembedding",
    "completion",
    "completion_cost",
    "configure",
    "count_tokens",
    "embedding",
    "exceptions",
    "find_profile",
    "iter_batch",
    "parse_usage",
    "run_batch",
    "run_worker",
    "token_counter",
    "tool",
    "warm_cache",
]

_HOMES = {
    "broker.blocking": ("Job",),
    "broker.cancel": ("CancelOutcome",),
    "broker.listing": ("JobPage",),
    "broker.queue": ("AsyncJob", "JobResult"),
    "broker.status": ("JobStatus",),
    "client": (
        "Choice",
        "Embeddings",
        "OpenAIClient",
        "PusherSink",
        "Result",
        "SyncClient",
        "iter_batch",
        "run_batch",
    ),
    "client.litellm": (
        "completion_cost",
        "token_counter",
        "AsyncChunks",
        "Chunks",
        "acompletion",
        "aembedding",
        "completion",
        "embedding",
        "exceptions",
    ),
    "client.router": ("Router",),
    "llm.agent": ("AgentResult", "AgentRunner", "Step", "ToolLoop"),
    "llm.cache": (
        "Cache",
        "CacheError",
        "Cached",
        "warm_cache",
    ),
    "llm.limits": (
        "Budget",
        "Limited",
        "Limiter",
        "TokenBucket",
    ),
    "llm.profiles": (
        "GPT5",
        "GPT5Mini",
        "GPT5Nano",
        "GPT5Point1",
        "GPT5Point2",
        "ModelProfile",
        "Price",
        "TextEmbedding3Large",
        "TextEmbedding3Small",
        "find_profile",
    ),
    "llm.router": ("Deployment", "Failover", "Rules"),
    "llm.tokens": (
        "TokenCount",
        "count_tokens",
    ),
    "wiring": ("configure",),
    "errors": (
        "APIConnectionError",
        "APIError",
        "AuthenticationError",
        "BadRequestError",
        "BrokerUnavailable",
        "CompletionError",
        "ConfigurationError",
        "ConflictError",
        "ContentPolicyViolationError",
        "ContextWindowExceededError",
        "DeltafanError",
        "FieldError",
        "InternalServerError",
        "JobFailed",
        "JobNotFound",
        "LogExpired",
        "NotFoundError",
        "PermissionDeniedError",
        "QueueFull",
        "RateLimitError",
        "ServiceUnavailableError",
        "Timeout",
        "TokenExpired",
        "TokenInvalid",
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
    "llm.usage": ("parse_usage",),
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
