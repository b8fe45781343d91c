"""The commands by name. Each is a module of its own, loaded when it is called: a `tail` need not wait for the worker's
libraries.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version as installed_version
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltafan.cli.words import in_our_words

_MODULES = {
    "demo": "demo",
    "serve": "serve",
    "worker": "worker",
    "relay": "relay",
    "provider": "provider",
    "pusher-emulator": "pusher_emulator",
    "enqueue": "enqueue",
    "tail": "tail",
    "show": "jobs",
    "jobs": "jobs",
    "cancel": "jobs",
    "dead": "dead",
    "keys": "keys",
    "token": "token",
    "doctor": "doctor",
    "chaos": "chaos",
    "version": "version",
}
"""In the order in which the help lists them."""


class Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"deltafan.cli.{_MODULES[cmd_name]}")
        apps: dict[str, typer.Typer] = module.COMMANDS
        command = typer.main.get_command(apps[cmd_name])
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        with in_our_words():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Event streaming for web apps that use LLMs: enqueue a prompt, stream its tokens to every subscriber.",
    epilog=(
        "Settings come from flags, else from the environment (`REDIS_URL`, `OPENAI_API_KEY`, `OPENAI_BASE_URL`, "
        "`DELTAFAN_*`; each flag's help names its variable). Try `deltafan demo` first."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed_version("deltafan"))
        raise typer.Exit


@app.callback()
def deltafan(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Reads what comes before the command."""


def main() -> None:
    """The entry point of `deltafan` and of `python -m deltafan`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character gets a question mark
    typer.main.get_command(app)(prog_name="deltafan")
