"""`deltafan token`."""

from __future__ import annotations

from typing import Annotated

import typer

from deltafan.cli.base import new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.output import errors_shown, out
from deltafan.errors import ConfigurationError, FieldError, ValidationError
from deltafan.settings import ClientSettings, TokenSettings
from deltafan.tokens import HIDDEN, TokenKeys

app = new_app()
COMMANDS = {"token": app}


@app.command(
    epilog=(
        "Examples: `deltafan token --job JOB --cancel`, `deltafan token --subject user-42 --ttl 600`, "
        "`deltafan token --channel 'private-room-*' --hide reasoning`. Needs `DELTAFAN_TOKEN_KEYS`, the relay's."
    )
)
@takes_settings(ClientSettings, TokenSettings)
def token(
    given: Given,
    *,
    job: Annotated[list[str] | None, typer.Option(help="A job that may be followed; may be repeated.")] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="Jobs on this channel, * for any characters; may be repeated.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Jobs that were enqueued for this user of yours.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="They may be cancelled, too.")] = False,
    ttl: Annotated[float | None, typer.Option(help="How long it is good for, in seconds.")] = None,
    hide: Annotated[
        list[str] | None, typer.Option(help=f"What is not shown: {', '.join(HIDDEN)}; may be repeated.")
    ] = None,
) -> None:
    """Make a stream token, with which a browser may follow jobs at the relay, and print it."""
    with errors_shown():
        configuration = given.load()
        keys = TokenKeys.of(configuration.tokens)
        if keys is None:
            raise ConfigurationError("stream tokens need a key: set DELTAFAN_TOKEN_KEYS to kid=secret, as at the relay")
        try:
            made = keys.mint(
                configuration.client.tenant,
                jobs=job or (),
                channels=channel or (),
                subject=subject,
                cancel=cancel,
                ttl=ttl,
                hide=hide or (),
            )
        except ValidationError as error:
            raise ValidationError([FieldError(_flag(f.field), f.message) for f in error.fields]) from None
        out.print(made, markup=False)


def _flag(field: str) -> str:
    return f"--{field.removesuffix('s')}" if field else ""
