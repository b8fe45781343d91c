"""`deltafan keys`."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from deltafan.cli.base import Json, new_app
from deltafan.cli.output import errors_shown, note, out, print_json, wrong
from deltafan.relay.keys import RIGHTS, TENANT_NAME, parse_rights

KEY_BYTES = 32
PREFIX = "deltafan_"
"""So that a key that has strayed into a repository is found by whoever looks for secrets."""

app = new_app(subcommands="API keys of the relay.")
COMMANDS = {"keys": app}


@app.callback()
def keys() -> None:
    """Reads what comes before the subcommand."""


@app.command(epilog="Example: `deltafan keys new --tenant acme --rights enqueue+read`.")
def new(
    *,
    tenant: Annotated[str, typer.Option(help="Whose key it is; nothing crosses tenants.")] = "default",
    rights: Annotated[str, typer.Option(help="What it allows, joined by +.")] = "+".join(RIGHTS),
    json: Json = False,
) -> None:
    """Make an API key. It is shown once; what the relay is told is only its hash."""
    with errors_shown():
        if not TENANT_NAME.fullmatch(tenant):
            raise wrong("--tenant", "must be 1 to 64 letters, digits, _ . or -, the first a letter or digit")
        allowed = parse_rights(rights)
        if allowed is None:
            raise wrong("--rights", f"must be of {', '.join(RIGHTS)}, joined by +")
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        named = "" if len(allowed) == len(RIGHTS) else ":" + "+".join(right for right in RIGHTS if right in allowed)
        entry = f"{tenant}{named}=sha256:{hashlib.sha256(key.encode()).hexdigest()}"
        if json:
            print_json({"key": key, "entry": entry})
            return
        out.print(key, markup=False)
        note("That is the key. Keep it where secrets are kept: it is not shown again. Add its entry to the relay's:")
        out.print(f"DELTAFAN_API_KEYS={entry}", markup=False)
