"""`deltafan relay`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final

import uvloop

from deltafan.broker.startup import check_server
from deltafan.cli.base import ReadyJson, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.output import errors_shown, note, print_json
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.lifeline import Lifeline
from deltafan.program import in_loop, on_signals
from deltafan.queues import AsyncQueue
from deltafan.relay.server import serve
from deltafan.settings import JobLimits, LogSettings, RedisSettings, RelaySettings, Retention, TokenSettings
from deltafan.telemetry import logs
from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.outage import Outage
from deltafan.wiring import Configuration, take_lifeline

_LOOK_AGAIN: Final = 1.0

app = new_app()
COMMANDS = {"relay": app}


@app.command(
    epilog=(
        "Examples: `deltafan relay`, `DELTAFAN_API_KEYS=acme=sha256:… deltafan relay --host 0.0.0.0`. "
        "`deltafan keys new` makes a key. Without keys it serves this machine only."
    )
)
@takes_settings(RelaySettings, TokenSettings, RedisSettings, JobLimits, Retention, LogSettings)
def relay(
    given: Given,
    *,
    json: ReadyJson = False,
) -> None:
    """Serve the HTTP API, the SSE streams and a plain page, until SIGTERM or Ctrl-C."""

    def ready(url: str) -> None:
        if json:
            print_json({"ready": True, "url": url})
        else:
            access = "" if configuration.relay.api_keys else ", open to whoever is on this machine: no API keys are set"
            note(f"the relay listens on {url}{access}")

    lifeline = take_lifeline()
    with errors_shown():
        configuration = given.load()
        logs.configure(configuration.log.log_level, configuration.log.log_format)
        sys.exit(uvloop.run(_serve(configuration, ready, lifeline)))


async def _serve(configuration: Configuration, ready: Callable[[str], None], lifeline: Lifeline | None) -> int:
    stop = asyncio.Event()
    exit_code = on_signals(stop.set)
    if lifeline is not None:
        lifeline.on_loss(in_loop(stop.set))
    async with AsyncQueue(configuration.redis, limits=configuration.limits, retention=configuration.retention) as queue:
        outage = Outage(logs.log_hook())
        checking = await _check_redis(queue, outage)
        relay, tokens, pusher = configuration.relay, configuration.tokens, configuration.pusher
        try:
            await serve(queue, relay, tokens, pusher, outage, ready=ready, stop=stop)
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)
    return exit_code()


async def _check_redis(queue: AsyncQueue, outage: Outage) -> asyncio.Task[None]:
    """Look at Redis; where it is away, serve all the same (503 until it is back) and look when it has come.

    :raises ConfigurationError: an ACL forbids what a relay needs.
    """
    hook = logs.log_hook()

    async def check(first: bool) -> bool:
        try:
            await check_server(queue.connections, "relay", hook)
        except BrokerUnavailable as error:
            outage.failed("start", error)
            return False
        except ConfigurationError as error:
            if first:
                raise
            hook(Signal("redis.refused", "error", {"error": str(error)}))
        outage.went_well("start")
        return True

    async def later(done: bool) -> None:
        while not done:
            await asyncio.sleep(_LOOK_AGAIN)
            done = await check(first=False)

    return asyncio.create_task(later(await check(first=True)), name="deltafan-check-redis")
