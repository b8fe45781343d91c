"""Settings: one frozen object a component. Nothing here reads the environment; `wiring` does.

Every field is a `DELTAFAN_<NAME>` variable and a command-line flag; durations are in seconds, sizes in bytes.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
QUEUE_NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,63}$"
QueueName = Annotated[str, Field(pattern=QUEUE_NAME)]


class Settings(BaseModel):
    """The base of every settings object: frozen, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RedisSettings(Settings):
    url: str = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis or Valkey, as a URL; also redis+sentinel:// and redis+cluster://.",
    )
    partitions: int = Field(default=1, ge=1, le=1024, description="Hash slots that jobs are spread over.")
    command_timeout: Seconds = Field(default=5.0, description="How long Redis may take to answer a command.")
    probe_interval: Seconds = Field(default=5.0, description="Silence on a subscription after which it is probed.")


class JobLimits(Settings):
    max_bytes: int = Field(default=1024 * 1024, ge=1024, description="Size of a job spec as JSON.")
    max_depth: int = Field(default=32, ge=4, le=200, description="Nesting of a job spec.")
    max_queue: int = Field(default=1_000_000, ge=1, description="Jobs that may wait in one queue.")


class WorkerSettings(Settings):
    queues: tuple[QueueName, ...] = Field(
        default=("default",), min_length=1, description="Queues to serve, in this order."
    )
    concurrency: int = Field(default=256, ge=1, le=100_000, description="Jobs that one process runs at once.")
    processes: int = Field(default=1, ge=1, le=256, description="Worker processes.")
    drain: float = Field(default=30.0, ge=0, description="How long running streams may finish after SIGTERM.")
    lease: float = Field(
        default=10.0,
        allow_inf_nan=False,
        ge=1,  # three heartbeats and their round trips: any less, and a pause of the machine costs jobs
        le=3600,
        description="A worker silent for this long has lost its jobs.",
    )
    reap_interval: float = Field(
        default=2.0,
        allow_inf_nan=False,
        ge=0.05,  # each look is a few commands a queue
        le=3600,
        description="How often workers look for the jobs of lost ones.",
    )
    timeout: Seconds = Field(default=600.0, description="The longest an attempt may run.")
    first_token_timeout: Seconds = Field(default=120.0, description="The longest wait for the first token.")
    stall_timeout: Seconds = Field(default=60.0, description="The longest silence after the first token.")
    max_attempts: int = Field(default=3, ge=1, le=100, description="Runs that may fail before the job does.")
    backoff: Seconds = Field(default=1.0, description="Mean wait before the second attempt; doubles each time.")
    backoff_max: Seconds = Field(default=60.0, description="The longest wait between attempts.")
    sink_budget: Seconds = Field(default=10.0, description="How long an ended job waits for a sink that is behind.")
    buffer_bytes: int = Field(default=1024 * 1024, ge=4096, description="Unwritten output a job may hold in memory.")
    memory_bytes: int = Field(
        default=4 * 1024 * 1024, ge=4096, description="Written output a job keeps, to refill a log that lost its tail."
    )


class Retention(Settings):
    retention: Seconds = Field(default=86_400.0, description="How long an ended job's events and record are kept.")
    idle_retention: Seconds = Field(
        default=7 * 86_400.0, description="How long a log without news is kept while its job has not ended."
    )
    dead_retention: Seconds = Field(
        default=30 * 86_400.0, description="How long a dead letter is kept. Each queue keeps the newest 100,000."
    )


class RelaySettings(Settings):
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    api_keys: tuple[str, ...] = Field(
        default=(),
        repr=False,
        description="Keys that may use the API, as tenant=key or tenant:rights=key, separated by commas.",
    )
    cors_origins: tuple[str, ...] = Field(default=(), description="Origins of pages that may call the relay, or *.")
    heartbeat: Seconds = Field(default=15.0, description="Silence after which a follower gets a heartbeat event.")
    reconnect: Seconds = Field(default=2.0, description="How long a browser waits before it reconnects.")
    client_buffer: int = Field(
        default=1024 * 1024, ge=16 * 1024, description="Bytes a slow follower may owe before it is disconnected."
    )
    max_followers: int = Field(default=20_000, ge=1, description="SSE followers of one relay process.")
    max_followers_per_key: int = Field(default=10_000, ge=1, description="SSE followers by one API key or token.")
    key_rate: float = Field(
        default=1000.0,
        ge=0,
        allow_inf_nan=False,
        description="Requests a second by one API key or token; 0 is no limit.",
    )
    address_rate: float = Field(
        default=1000.0, ge=0, allow_inf_nan=False, description="Requests a second from one address; 0 is no limit."
    )
    failure_rate: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="Wrong API keys a second from one address; 0 is no limit.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="Networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8."
    )
    relay_drain: float = Field(default=5.0, ge=0, description="How long requests may finish after SIGTERM.")
    tenants: tuple[str, ...] = Field(
        default=(), description="Tenants without API keys at this relay, whose channels are to be kept apart."
    )
    dev_tools: bool = Field(
        default=False, description="Let the page kill workers. For development; only without API keys."
    )
    page_model: str = Field(default="", max_length=200, description="Model that the page at / proposes.")


class TokenSettings(Settings):
    token_keys: tuple[str, ...] = Field(
        default=(),
        repr=False,
        description="Keys of stream tokens, as kid=secret, separated by commas: the first signs, all are accepted.",
    )
    token_ttl: Seconds = Field(
        default=3600.0, le=366 * 86_400.0, description="How long a stream token is good for, when nothing else is said."
    )


class PusherSettings(Settings):
    """Of Pusher Channels, or of a server that speaks its protocol. `PUSHER_*` variables, not flags: secrets."""

    app_id: str = Field(default="", pattern=r"^[0-9]*$")
    key: str = ""
    secret: SecretStr = SecretStr("")
    cluster: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,32}$")
    """Of the hosted service. Its API is `api-<cluster>.pusher.com`, its WebSockets `ws-<cluster>.pusher.com`."""
    host: str | None = Field(default=None, pattern=r"^[^/\s]+$")
    """Of a self-hosted server; wins over the cluster."""
    port: int | None = Field(default=None, ge=1, le=65_535)
    tls: bool = True
    encryption_master_key: SecretStr | None = None
    """32 bytes in base64, for `private-encrypted-` channels."""
    interval: float = Field(default=0.05, ge=0, le=60)
    """Seconds between two messages of a job on a channel, at least: Pusher bills by the message."""
    timeout: Seconds = 5.0
    """Seconds that one request may take."""

    @field_validator("encryption_master_key")
    @classmethod
    def _thirty_two_bytes(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        try:
            raw = base64.b64decode(key.get_secret_value(), validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32:
            raise ValueError("must be 32 bytes in base64, as `openssl rand -base64 32` gives them")
        return key

    @model_validator(mode="after")
    def _whole(self) -> PusherSettings:
        given = [bool(self.app_id), bool(self.key), bool(self.secret.get_secret_value())]
        if any(given) and not all(given):
            raise ValueError("PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET belong together")
        return self

    @property
    def configured(self) -> bool:
        return bool(self.app_id)


class ClientSettings(Settings):
    """Of the commands that enqueue and look at jobs."""

    model: str = Field(default="gpt-5-mini", min_length=1, max_length=200, description="Model of jobs that name none.")
    tenant: str = Field(default="default", min_length=1, max_length=64, description="Whose jobs the commands see.")


class LogSettings(Settings):
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged, to standard error."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="How: auto is text on a terminal, JSON elsewhere."
    )
