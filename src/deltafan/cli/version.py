"""`deltafan version`."""

from __future__ import annotations

from importlib.metadata import version as installed_version

import typer

from deltafan.cli.base import Json, new_app
from deltafan.cli.output import print_json

app = new_app()
COMMANDS = {"version": app}


@app.command()
def version(json: Json = False) -> None:
    """Print the version."""
    number = installed_version("deltafan")
    if json:
        print_json({"version": number})
    else:
        typer.echo(number)
