"""`deltafan pusher-emulator`: a Pusher-protocol server, to work and to test without an account."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from deltafan.cli.base import ReadyJson, new_app
from deltafan.cli.output import errors_shown, fields_as_flags, note, print_json, print_line
from deltafan.devserver.pusher import FAULTS, running
from deltafan.program import on_signals

app = new_app()
COMMANDS = {"pusher-emulator": app}

_FAULTS = "; ".join(f"`{rule.usage(name)}` {rule.summary}" for name, rule in FAULTS.items())
_APP = "The app"


@app.command(
    epilog=(
        "Examples: `deltafan pusher-emulator`, `deltafan pusher-emulator --port 0 --fault 'status=500*3'`. "
        "It prints the variables that point a program at it. In a page: `new Pusher(KEY, {wsHost: '127.0.0.1', "
        "wsPort: 6001, forceTLS: false, enabledTransports: ['ws'], cluster: ''})`. `GET /emulator/messages?channel=` "
        'tells what was published; `POST /emulator/faults` with `{"faults": ["status=500*3"]}` orders faults.\n\n'
        f"Faults of the HTTP API, each with an optional `*K` for the next K requests only: {_FAULTS}."
    )
)
def pusher_emulator(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)] = 6001,
    app_id: Annotated[str, typer.Option(help="The app's id: digits.", rich_help_panel=_APP)] = "1",
    key: Annotated[str, typer.Option(help="The app's key, which pages know.", rich_help_panel=_APP)] = "dev-key",
    secret: Annotated[
        str | None,
        typer.Option(
            help="The app's secret, 8 characters or more; a new one at each start without.",
            rich_help_panel=_APP,
            show_default=False,
        ),
    ] = None,
    webhook_url: Annotated[
        str | None, typer.Option(help="Where webhooks are sent.", rich_help_panel=_APP, show_default=False)
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=NUMBER][*K]", help="What goes wrong; may be repeated.")
    ] = None,
    json: ReadyJson = False,
) -> None:
    """Serve a Pusher-protocol server (HTTP API, WebSockets, webhooks), until Ctrl-C."""
    with errors_shown(), fields_as_flags():
        sys.exit(asyncio.run(_serve(host, port, app_id, key, secret, webhook_url, fault or [], json)))


async def _serve(
    host: str,
    port: int,
    app_id: str,
    key: str,
    secret: str | None,
    webhook_url: str | None,
    faults: list[str],
    json: bool,
) -> int:
    stop = asyncio.Event()
    exit_code = on_signals(stop.set)
    async with running(
        host, port, app_id=app_id, key=key, secret=secret, webhook_url=webhook_url, faults=faults
    ) as pusher:
        if json:
            print_json({"ready": True, "url": pusher.url, "variables": pusher.variables})
        else:
            note(f"the Pusher emulator listens on {pusher.url}; programs find it with")
            for name, value in pusher.variables.items():
                print_line(f"{name}={value}".encode())
        await stop.wait()
    return exit_code()
