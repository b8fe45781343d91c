"""`deltafan enqueue`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from deltafan.cli.base import Json, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.following import follow_job, open_queue
from deltafan.cli.output import fields_as_flags, out, print_json, run, wrong
from deltafan.job import JobSpec, OnTakeover, Priority, parse_spec
from deltafan.settings import ClientSettings, JobLimits, RedisSettings

app = new_app()
COMMANDS = {"enqueue": app}

_ASK, _WHEN, _RUN, _TO = "What to ask", "When", "How to run it", "Where it goes"


@app.command(
    epilog=(
        'Examples: `deltafan enqueue "Why is the sky blue?" --follow`, `deltafan enqueue --messages chat.json --model '
        "groq/llama-3.3-70b-versatile --param temperature=0.2`, `cat chat.json | deltafan enqueue --messages - --json`."
    )
)
@takes_settings(ClientSettings, RedisSettings)
def enqueue(
    given: Given,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; or give --messages.", show_default=False)] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the output as it arrives.")] = False,
    messages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A JSON list of chat messages; - reads standard input.", rich_help_panel=_ASK
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=JSON", help="A chat-completions parameter; may be repeated.", rich_help_panel=_ASK),
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="A tool of the worker; may be repeated.", rich_help_panel=_ASK)
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="A model to ask when the first fails; may be repeated.", rich_help_panel=_ASK
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Yours, in every meta event; may be repeated.", rich_help_panel=_TO),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="A Redis channel of yours to publish on, too.", rich_help_panel=_TO)
    ] = None,
    sink: Annotated[
        list[str] | None, typer.Option(help="A further sink of the worker; may be repeated.", rich_help_panel=_TO)
    ] = None,
    pusher_channel: Annotated[
        list[str] | None,
        typer.Option(help="A Pusher channel, for --sink pusher; may be repeated.", rich_help_panel=_TO),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="The user of yours whose job it is.", rich_help_panel=_TO)] = None,
    queue: Annotated[str | None, typer.Option(help="The queue (default: default).", rich_help_panel=_WHEN)] = None,
    priority: Annotated[Priority | None, typer.Option(help="Before or after others.", rich_help_panel=_WHEN)] = None,
    delay: Annotated[
        float | None, typer.Option(help="Seconds to wait before it may run.", rich_help_panel=_WHEN)
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When it may run, such as 2030-01-31T09:00:00Z.", rich_help_panel=_WHEN),
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(help="Seconds after which it need not start.", rich_help_panel=_WHEN)
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key gives the same job.", rich_help_panel=_WHEN)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that an attempt may run.", rich_help_panel=_RUN)
    ] = None,
    first_token_timeout: Annotated[
        float | None, typer.Option(help="Seconds until the first token.", rich_help_panel=_RUN)
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="Seconds of silence after it.", rich_help_panel=_RUN)
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Runs that may fail.", rich_help_panel=_RUN)] = None,
    on_takeover: Annotated[
        OnTakeover | None,
        typer.Option(help="What a new attempt does with text already streamed.", rich_help_panel=_RUN),
    ] = None,
    cancel_if_abandoned: Annotated[
        float | None, typer.Option(help="Cancel after so many seconds without a follower.", rich_help_panel=_RUN)
    ] = None,
    retention: Annotated[
        float | None, typer.Option(help="Seconds that events are kept after the end.", rich_help_panel=_RUN)
    ] = None,
    json: Json = False,
) -> None:
    """Enqueue a prompt, and print the job's id, or with --follow its output.

    With --follow the exit code tells how the job ended: 0 done, 1 failed, cancelled or expired.
    """
    fields: dict[str, Any] = {
        "prompt": prompt,
        "fallbacks": fallback,
        "tools": tool,
        "sinks": sink,
        "channel": channel,
        "pusher_channels": pusher_channel,
        "subject": subject,
        "queue": queue,
        "priority": priority,
        "delay": delay,
        "run_at": run_at,
        "expires_in": expires_in,
        "idempotency_key": idempotency_key,
        "timeout": timeout,
        "first_token_timeout": first_token_timeout,
        "stall_timeout": stall_timeout,
        "max_attempts": max_attempts,
        "on_takeover": on_takeover,
        "cancel_if_abandoned": cancel_if_abandoned,
        "retention": retention,
    }
    run(_enqueue(given, fields, messages, param or [], metadata or [], follow, json))


async def _enqueue(
    given: Given,
    fields: dict[str, Any],
    messages: str | None,
    params: list[str],
    metadata: list[str],
    follow: bool,
    json: bool,
) -> None:
    configuration = given.load()
    with fields_as_flags("prompt"):
        spec = _spec(fields, messages, params, metadata, configuration.client.model, configuration.limits)
    async with open_queue(configuration) as queue:
        with fields_as_flags("prompt"):
            enqueued = await queue.submit(spec)
        job = queue.job(enqueued.id)
        if follow:
            await follow_job(job, json=json)
        elif json:
            channel = spec.channel or job.channel
            print_json({"id": job.id, "state": enqueued.state, "channel": channel, "created": enqueued.created})
        else:
            out.print(job.id, markup=False)


def _spec(
    fields: dict[str, Any],
    messages: str | None,
    params: list[str],
    metadata: list[str],
    model: str,
    limits: JobLimits,
) -> JobSpec:
    given = {name: value for name, value in fields.items() if value is not None}
    given["model"] = model
    if messages is not None:
        given["messages"] = _messages(messages, limits)
    if params:
        given["params"] = dict(_param(text) for text in params)
    if metadata:
        given["metadata"] = dict(_pair("metadata", text, "KEY=VALUE") for text in metadata)
    if "run_at" in given:
        given["run_at"] = _time(given["run_at"])
    return parse_spec(given, limits)


def _messages(source: str, limits: JobLimits) -> Any:
    try:
        with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
            raw = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise wrong("messages", f"{source} cannot be read: {error.strerror}") from None
    if len(raw) > limits.max_bytes:
        raise wrong("messages", f"at most {limits.max_bytes:,} bytes are taken")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise wrong("messages", f"is not JSON: {error}") from None


def _pair(field: str, text: str, shape: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise wrong(field, f"must be {shape}, not {text!r}")
    return key, value


def _param(text: str) -> tuple[str, Any]:
    key, value = _pair("param", text, "KEY=JSON")
    try:
        return key, orjson.loads(value)
    except orjson.JSONDecodeError:
        raise wrong("param", f"{key} must be JSON; a text is written in quotes: --param '{key}=\"text\"'") from None


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise wrong("run_at", "must be a time, such as 2030-01-31T09:00:00Z") from None
