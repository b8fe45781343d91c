"""What the modules of the commands share in declaring them."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON: one object a line.")]
ReadyJson = Annotated[bool, typer.Option("--json", help="Print a line of JSON to standard output when ready.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


def new_app(*, subcommands: str | None = None) -> typer.Typer:
    """An app for one command, or with a help text, for several."""
    return typer.Typer(
        add_completion=False,
        no_args_is_help=subcommands is not None,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help=subcommands,
    )
