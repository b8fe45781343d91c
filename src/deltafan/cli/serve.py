"""`deltafan serve`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from deltafan.cli.base import ReadyJson, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.output import errors_shown, note, out, print_json
from deltafan.cli.stack import Stack, stack
from deltafan.llm import LLMSettings
from deltafan.program import on_signals
from deltafan.settings import (
    ClientSettings,
    JobLimits,
    LogSettings,
    RedisSettings,
    RelaySettings,
    Retention,
    TokenSettings,
    WorkerSettings,
)
from deltafan.wiring import Configuration, variable

_PUSHER_PORT: Final = 6001
"""Where self-hosted Pusher servers usually listen."""
_SERVED: Final = {"processes": "2"}
"""Under a supervisor: a worker that dies is restarted, and meanwhile another takes its jobs over."""
_DEVELOPMENT: Final = {"dev_tools": "true", "lease": "3", "reap_interval": "1"}
"""Without API keys this is somebody's own machine: the page may kill a worker, and another takes over soon."""

app = new_app()
COMMANDS = {"serve": app}


@app.command(
    epilog=(
        "Examples: `deltafan serve`, `OPENAI_API_KEY=sk-… deltafan serve --port 9000`. With `OPENAI_API_KEY` (and "
        "`OPENAI_BASE_URL`) the real provider answers, else a scripted one; with `REDIS_URL` that Redis is used, else "
        "an embedded Valkey, which forgets everything at the end; with `PUSHER_APP_ID`, … Pusher, else an emulator."
    )
)
@takes_settings(
    RelaySettings,
    TokenSettings,
    WorkerSettings,
    RedisSettings,
    LLMSettings,
    Retention,
    JobLimits,
    ClientSettings,
    LogSettings,
)
def serve(given: Given, *, json: ReadyJson = False) -> None:
    """Start Redis, a provider, Pusher, workers and the relay, and serve until Ctrl-C."""
    with errors_shown():
        sys.exit(asyncio.run(_serve(given, json)))


async def _serve(given: Given, json: bool) -> int:
    configuration = given.load()
    variables = given.as_variables()
    if "log_level" not in configuration.chosen:
        variables[variable("log_level")] = "warning"
    if not configuration.relay.page_model:
        variables[variable("page_model")] = configuration.client.model
    defaults = _SERVED if configuration.relay.api_keys else _SERVED | _DEVELOPMENT
    variables |= {variable(name): value for name, value in defaults.items() if name not in configuration.chosen}
    stop = asyncio.Event()
    exit_code = on_signals(stop.set)
    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(_until(configuration, variables, json))
    try:
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            starting.result()
    finally:
        stopping.cancel()
    return exit_code()


async def _until(configuration: Configuration, variables: dict[str, str], json: bool) -> None:
    async with stack(configuration, variables, _PUSHER_PORT) as everything:
        if json:
            print_json(
                {
                    "ready": True,
                    "url": everything.relay_url,
                    "redis_url": everything.redis_shown,
                    "provider_url": everything.provider_url,
                    "pusher": everything.emulator.variables if everything.emulator else None,
                }
            )
        else:
            _show(everything, configuration)
        raise await everything.failure()


def _show(everything: Stack, configuration: Configuration) -> None:
    url, model = everything.relay_url, configuration.client.model
    key = " -H 'Authorization: Bearer KEY'" if configuration.relay.api_keys else ""
    scripted = " (scripted: set OPENAI_API_KEY to use a real one)" if everything.scripted else ""
    embedded = " (embedded: forgets everything at the end)" if everything.embedded else ""
    out.print(f"page      {url}/", markup=False)
    out.print(f"API       {url}/v1/jobs", markup=False)
    out.print(f"Redis     {everything.redis_shown}{embedded}", markup=False)
    out.print(f"provider  {everything.provider_url}{scripted}", markup=False)
    if everything.emulator is not None:
        settings = " ".join(f"{name}={value}" for name, value in everything.emulator.variables.items())
        out.print(
            f"Pusher    {everything.emulator.url} (emulator: set PUSHER_APP_ID, … to use a real one)", markup=False
        )
        out.print(f"          {settings}", markup=False, soft_wrap=True)
    else:
        out.print(f"Pusher    app {configuration.pusher.app_id}", markup=False)
    out.print("\nEnqueue a prompt, and follow it:", markup=False)
    body = f'{{"model":"{model}","prompt":"Hello"}}'
    out.print(f"  curl {url}/v1/jobs{key} -H 'Content-Type: application/json' -d '{body}'", markup=False)
    out.print(f"  curl -N{key} {url}/v1/jobs/ID/events", markup=False)
    out.print(f"  REDIS_URL={everything.redis_shown} deltafan enqueue Hello --follow", markup=False)
    note("\nCtrl-C stops everything.")
