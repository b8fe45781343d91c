"""The worker as a program: settings, tools and sinks made into running processes.

The command line runs it, and so does an operator's own `main.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import uvloop

from deltafan.broker.connections import Connections
from deltafan.channels import PUSHER
from deltafan.engine.engine import Engine, new_worker_id
from deltafan.engine.services import Services
from deltafan.engine.supervisor import CANNOT_START, Supervisor
from deltafan.errors import ConfigurationError, DeltafanError, ValidationError
from deltafan.events import Usage
from deltafan.lifeline import Lifeline
from deltafan.llm import pricing
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.tools import Tool
from deltafan.models import Routes, open_models
from deltafan.program import in_loop, on_signals
from deltafan.sinks.base import SinkFactory
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.pusher.sink import pusher_sinks
from deltafan.telemetry import logs
from deltafan.telemetry.hooks import Hook, Signal
from deltafan.wiring import Configuration, child_environment, load, take_lifeline

_PATIENCE: Final = 10.0
"""Seconds beyond drain and lease that a child process may take to end."""


def run_worker(
    *,
    tools: Sequence[Tool] = (),
    sinks: Mapping[str, SinkFactory] | None = None,
    routes: Routes | None = None,
    hook: Hook | None = None,
    ready: Callable[[str], None] | None = None,
    configuration: Configuration | None = None,
    **settings: object,
) -> int:
    """Run the worker until SIGTERM or Ctrl-C, and drain; a second one makes it hand its jobs over at once.

    With `processes` above 1 it runs this same program in as many processes, and restarts one that dies or is stuck.

    :param tools: functions that jobs may name in `tools`.
    :param sinks: further destinations that jobs may name in `sinks`.
    :param routes: makes a `Router` of the models: names of your own that jobs may use, with several deployments and
        fallbacks behind each.
    :param hook: told what happens; by default it is logged to standard error.
    :param ready: called with the worker's id when it takes jobs.
    :param configuration: all settings; read from the environment when left out.
    :param settings: settings that win over the environment, such as `concurrency=64`.
    :return: the exit code: 0, 1 when it failed, 2 when a setting is wrong, 130 after Ctrl-C. Errors are written to
        standard error.
    """
    lifeline = take_lifeline()
    try:
        configuration = configuration or load(overrides=settings)
        logs.configure(configuration.log.log_level, configuration.log.log_format)
        hook = hook or logs.log_hook()
        if configuration.worker.processes > 1 and not (lifeline and lifeline.supervised):
            return asyncio.run(_supervise(configuration, hook, lifeline))
        return uvloop.run(_serve(configuration, tools, sinks or {}, routes, hook, ready, lifeline))
    except DeltafanError as error:
        return _failed(error)
    except BaseExceptionGroup as group:
        known = next(_known_errors(group), None)
        if known is None:
            raise
        return _failed(known)


async def _serve(
    configuration: Configuration,
    tools: Sequence[Tool],
    sinks: Mapping[str, SinkFactory],
    routes: Routes | None,
    hook: Hook,
    ready: Callable[[str], None] | None,
    lifeline: Lifeline | None,
) -> int:
    """One process."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    def let_go() -> None:
        parent = "supervisor" if lifeline is not None and lifeline.supervised else "parent process"
        hook(Signal("worker.let_go", "info", {"why": f"the {parent} has ended", "pid": os.getpid()}))
        hurry.set()
        stop.set()

    exit_code = on_signals(end)
    if lifeline is not None:
        lifeline.on_loss(in_loop(let_go))
    async with (
        Connections(configuration.redis) as connections,
        OpenAICompletions(configuration.llm) as client,
        open_models(client, configuration, connections.commands, hook, routes) as (models, around),
        Publisher(configuration.pusher, hook) as publisher,
    ):
        client.prepare(configuration.llm.default_provider)
        if configuration.pusher.configured:
            sinks = {PUSHER: pusher_sinks(publisher), **sinks}
        services = Services(
            completions=models,
            around=around,
            settings=configuration.worker,
            llm=configuration.llm,
            retention=configuration.retention,
            limits=configuration.limits,
            sinks=sinks,
            tools=_by_name(tools),
            hook=hook,
        )
        worker = new_worker_id()
        loading = asyncio.create_task(asyncio.to_thread(_load_prices))

        def started() -> None:
            if lifeline is not None and lifeline.supervised:
                lifeline.beat(configuration.worker.lease)  # not before: it holds no lease, and imports take their time
            if ready is not None:
                ready(worker)

        await Engine(services, connections, worker).run(stop, hurry, started)
        await loading
    return exit_code()


async def _supervise(configuration: Configuration, hook: Hook, lifeline: Lifeline | None) -> int:
    """This program again, in several processes."""
    worker = configuration.worker
    supervisor = Supervisor(
        [sys.executable, *sys.orig_argv[1:]],
        worker.processes,
        environment=child_environment(supervised=True),
        patience=worker.drain + worker.lease + _PATIENCE,
        lease=worker.lease,
        hook=hook,
    )
    exit_code = on_signals(supervisor.terminate)
    if lifeline is not None:
        lifeline.on_loss(in_loop(supervisor.abandon))
    code = await supervisor.run()
    return code or exit_code()


def _load_prices() -> None:
    """The first job's cost is asked for at its end; by then the price list has been loaded."""
    pricing.cost_usd("openai", "gpt-5-mini", Usage(0, 0, 0))


def _by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    named = {tool.name: tool for tool in tools}
    if len(named) != len(tools):
        raise ConfigurationError("tools: two have the same name")
    return named


def _known_errors(group: BaseExceptionGroup[BaseException]) -> Iterator[DeltafanError]:
    for error in group.exceptions:
        if isinstance(error, DeltafanError):
            yield error
        elif isinstance(error, BaseExceptionGroup):
            yield from _known_errors(error)


def _failed(error: DeltafanError) -> int:
    sys.stderr.write(f"deltafan: {error}\n")
    return CANNOT_START if isinstance(error, ConfigurationError | ValidationError) else 1
