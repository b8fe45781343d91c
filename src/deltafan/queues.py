"""`AsyncQueue` and `Queue` as a web app uses them: without a URL they take the environment's settings."""

from __future__ import annotations

from deltafan.broker import queue
from deltafan.broker.blocking import BlockingQueue
from deltafan.settings import JobLimits, RedisSettings, Retention
from deltafan.wiring import load


class AsyncQueue(queue.AsyncQueue):
    """Enqueue prompt jobs and follow them. Open it with `async with`, or call `aclose`.

    :param url: Redis; left out, `REDIS_URL` and the `DELTAFAN_*` settings of the environment serve.
    :param tenant: whose jobs these are; nothing crosses tenants.
    :raises ConfigurationError: a variable or the URL is wrong.
    """

    def __init__(
        self,
        url: str | RedisSettings | None = None,
        *,
        tenant: str = "default",
        limits: JobLimits | None = None,
        retention: Retention | None = None,
    ) -> None:
        if url is None:
            environment = load()
            url = environment.redis
            limits, retention = limits or environment.limits, retention or environment.retention
        super().__init__(url, tenant=tenant, limits=limits, retention=retention)


class Queue(BlockingQueue):
    """As `AsyncQueue`, for code without an event loop: the same methods, which wait. Any thread may call them.

    Open it with `with`, or call `close`. In a forked child it connects anew.
    """

    def __init__(
        self,
        url: str | RedisSettings | None = None,
        *,
        tenant: str = "default",
        limits: JobLimits | None = None,
        retention: Retention | None = None,
    ) -> None:
        super().__init__(lambda: AsyncQueue(url, tenant=tenant, limits=limits, retention=retention))
