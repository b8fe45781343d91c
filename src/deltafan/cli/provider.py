"""`deltafan provider`: the scripted provider, to test an app against."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from deltafan.cli.base import ReadyJson, new_app
from deltafan.cli.output import errors_shown, fields_as_flags, note, print_json
from deltafan.devserver.provider import FAULTS, Script, parse_fault, parse_tool_calls, read_source, running
from deltafan.program import on_signals

app = new_app()
COMMANDS = {"provider": app}

_FAULTS = "; ".join(f"`{rule.usage(name)}` {rule.summary}" for name, rule in FAULTS.items())
_WHAT, _HOW, _ENDING = "What it answers (one of these, or its own text)", "How it answers", "How an answer ends"


@app.command(
    epilog=(
        "Examples: `deltafan provider --text 'Hello.' --rate 20`, `deltafan provider --echo --fault cut=5*1`, "
        "`deltafan provider --replay recorded.sse`. Point a client at it: `OPENAI_BASE_URL=http://127.0.0.1:9001/v1`. "
        "A request changes what it gets with headers of the same names (`X-Provider-Rate: 5`, `X-Provider-Fault: "
        "server_error`) or the same keys in its `metadata`. `GET /requests` tells what was asked and sent.\n\n"
        f"Faults, each with an optional `*K` for the first K requests of a prompt only: {_FAULTS}."
    )
)
def provider(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)] = 9001,
    text: Annotated[str | None, typer.Option(help="This text.", rich_help_panel=_WHAT)] = None,
    text_file: Annotated[Path | None, typer.Option(help="The text of a file.", rich_help_panel=_WHAT)] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE.sse", help="A recorded stream, byte for byte.", rich_help_panel=_WHAT)
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="The last user message.", rich_help_panel=_WHAT)] = False,
    tool_calls: Annotated[
        str,
        typer.Option(metavar="JSON", help='Calls: `[{"name":"f","arguments":{"x":1}}]`.', rich_help_panel=_WHAT),
    ] = "",
    reasoning: Annotated[str, typer.Option(help="Reasoning, before the text.", rich_help_panel=_WHAT)] = "",
    refusal: Annotated[str, typer.Option(help="A refusal, instead of the text.", rich_help_panel=_WHAT)] = "",
    rate: Annotated[float, typer.Option(help="Chunks a second; 0 is as fast as it can.", rich_help_panel=_HOW)] = 0.0,
    chunk_size: Annotated[int, typer.Option(help="Characters in a chunk.", rich_help_panel=_HOW)] = 4,
    first_token_delay: Annotated[
        float, typer.Option(help="Seconds between the headers and the first chunk.", rich_help_panel=_HOW)
    ] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=ARG][*K]", help="What goes wrong; may be repeated.", rich_help_panel=_HOW),
    ] = None,
    require_key: Annotated[
        str | None, typer.Option(help="Answer 401 to every other API key.", rich_help_panel=_HOW)
    ] = None,
    finish_reason: Annotated[
        str | None, typer.Option(help="Instead of the one that fits.", rich_help_panel=_ENDING)
    ] = None,
    usage: Annotated[bool, typer.Option(help="Tell the usage when asked.", rich_help_panel=_ENDING)] = True,
    json: ReadyJson = False,
) -> None:
    """Serve a scripted, OpenAI-compatible provider, until Ctrl-C. It needs no key and asks nobody."""
    with errors_shown(), fields_as_flags():
        script = Script(
            source=read_source(text=text, text_file=text_file, replay_file=replay, echo=echo),
            rate=rate,
            chunk_size=chunk_size,
            first_token_delay=first_token_delay,
            tool_calls=parse_tool_calls(tool_calls) if tool_calls else (),
            reasoning=reasoning,
            refusal=refusal,
            finish_reason=finish_reason,
            usage=usage,
            faults=tuple(parse_fault(name) for name in fault or ()),
            require_key=require_key,
        )
        sys.exit(asyncio.run(_serve(script, host, port, json)))


async def _serve(script: Script, host: str, port: int, json: bool) -> int:
    stop = asyncio.Event()
    exit_code = on_signals(stop.set)
    async with running(script, host, port) as provider:
        if json:
            print_json({"ready": True, "base_url": provider.base_url})
        else:
            note(f"the provider listens on {provider.base_url}")
        await stop.wait()
    return exit_code()
