"""`deltafan doctor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from deltafan.cli.base import Json, new_app
from deltafan.cli.finding import Finding
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.following import open_queue
from deltafan.cli.output import FAILED, fail, out, print_json, run
from deltafan.cli.provider_checks import check_provider
from deltafan.cli.pusher_checks import check_pusher
from deltafan.cli.queue_checks import check_queue, lives_here
from deltafan.cli.redis_checks import check_redis
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.relay.keys import parse_keys
from deltafan.settings import RedisSettings
from deltafan.tokens import TokenKeys
from deltafan.wiring import Configuration

app = new_app()
COMMANDS = {"doctor": app}

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command(
    epilog=(
        "Examples: `deltafan doctor`, `deltafan doctor --no-provider --json`, `deltafan doctor --this-host` (the "
        "health check of a worker's container)."
    )
)
@takes_settings(RedisSettings)
def doctor(
    given: Given,
    *,
    provider: Annotated[bool, typer.Option(help="Ask the providers that are set up whether they answer.")] = True,
    this_host: Annotated[bool, typer.Option("--this-host", help="Only whether a worker of this host lives.")] = False,
    json: Json = False,
) -> None:
    """Check settings, Redis (version, eviction, persistence, rights), queues, workers, Pusher and providers.

    Each line says ok, warn or fail, and how to mend what is wrong. The exit code is 1 when something fails.
    """
    run(_this_host(given) if this_host else _doctor(given, provider, json))


async def _this_host(given: Given) -> None:
    configuration = given.load()
    async with open_queue(configuration) as queue:
        if not await lives_here(queue, configuration.worker.queues[0]):
            raise fail("no worker of this host has a heartbeat")


async def _doctor(given: Given, provider: bool, json: bool) -> None:
    findings: list[Finding] = []

    def found(*more: Finding) -> None:
        for finding in more:
            findings.append(finding)
            _print(finding, json)

    try:
        configuration = given.load()
    except ConfigurationError as error:
        found(
            *(
                Finding("settings", "fail", line, "see deltafan worker --help, or docs/operations.md")
                for line in str(error).splitlines()
            )
        )
    else:
        found(*_check_credentials(configuration))
        await _check(configuration, provider, found)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(FAILED)


def _check_credentials(configuration: Configuration) -> list[Finding]:
    """What a relay looks at when it starts."""
    wrong: list[Finding] = []
    for read in (lambda: parse_keys(configuration.relay.api_keys), lambda: TokenKeys.of(configuration.tokens)):
        try:
            read()
        except ConfigurationError as error:
            wrong.append(Finding("settings", "fail", str(error), "see docs/access.md"))
    return wrong or [Finding("settings", "ok", "all valid")]


async def _check(configuration: Configuration, provider: bool, found: Callable[..., None]) -> None:
    async with open_queue(configuration) as queue:
        about_redis = await check_redis(queue)
        found(*about_redis)
        if not any(finding.level == "fail" and finding.check in ("redis", "rights") for finding in about_redis):
            for name in configuration.worker.queues:
                try:
                    found(*await check_queue(queue, name))
                except (BrokerUnavailable, ConfigurationError) as error:
                    found(Finding("queue", "fail", f"{name}: {error}", "mend that, and look again"))
    found(await check_pusher(configuration.pusher))
    if provider:
        names = dict.fromkeys((configuration.llm.default_provider, *configuration.llm.providers))
        for name in names:
            found(await check_provider(name, configuration.llm))


def _print(finding: Finding, json: bool) -> None:
    if json:
        print_json(finding.to_dict())
        return
    out.print(finding.level.ljust(4), style=_STYLES[finding.level], end="  ", markup=False)
    out.print(f"{finding.check:<12} {finding.seen}", markup=False)
    if finding.level != "ok" and finding.mend:
        out.print(f"{'':18} → {finding.mend}", style="dim", markup=False)
