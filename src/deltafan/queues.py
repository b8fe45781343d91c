"""`AsyncQueue` and `Queue` as a web app uses them: without a URL they take the environment's settings."""

from __future__ import annotations

from deltafan.broker import queue
from deltafan.broker.blocking import BlockingQueue
from deltafan.settings import JobLimits, RedisSettings, Retention, TokenSettings
from deltafan.tokens import TokenKeys
from deltafan.wiring import load


class AsyncQueue(queue.AsyncQueue):
    """Enqueue prompt jobs and follow them. Open it with `async with`, or call `aclose`.

    :param url: Redis; left out, `REDIS_URL` and the `DELTAFAN_*` settings of the environment serve.
    :param tenant: whose jobs these are; nothing crosses tenants.
    :param tokens: what `token` signs with; left out, `DELTAFAN_TOKEN_KEYS` serves.
    :raises ConfigurationError: a variable or the URL is wrong.
    """

    def __init__(
        self,
        url: str | RedisSettings | None = None,
        *,
        tenant: str = "default",
        limits: JobLimits | None = None,
        retention: Retention | None = None,
        tokens: TokenSettings | None = None,
    ) -> None:
        if url is None:
            environment = load()
            url = environment.redis
            limits, retention = limits or environment.limits, retention or environment.retention
            tokens = tokens or environment.tokens
        super().__init__(url, tenant=tenant, limits=limits, retention=retention, tokens=tokens)
        self._tokens_given = tokens is not None

    def token_keys(self) -> TokenKeys | None:
        if not self._tokens_given:  # with a URL of its own, the environment is read when it is first needed
            self._token_keys, self._tokens_given = TokenKeys.of(load().tokens), True
        return self._token_keys


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
        tokens: TokenSettings | None = None,
    ) -> None:
        super().__init__(lambda: AsyncQueue(url, tenant=tenant, limits=limits, retention=retention, tokens=tokens))
