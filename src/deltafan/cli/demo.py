"""`deltafan demo`: one job through everything, and its tokens as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import aiohttp
import typer

from deltafan import sse
from deltafan.channels import PUSHER, job_channel
from deltafan.child import ChildFailed
from deltafan.cli.base import Json, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.follow import FollowPrinter
from deltafan.cli.output import FAILED, note, run
from deltafan.cli.stack import Stack, stack
from deltafan.devserver.pusher import PusherEmulator
from deltafan.errors import DeltafanError
from deltafan.events import EVENT_CLASSES, Event
from deltafan.settings import ClientSettings, LogSettings, RedisSettings
from deltafan.transcript import Transcript
from deltafan.wire import decode, dumps
from deltafan.wiring import Configuration, variable

PROMPT = "How does a token find its way to a web page?"
_PUSHER_SECONDS = 5.0
QUEUE = "demo"
"""A queue of its own: on a Redis that others use, the demo's worker takes nobody's jobs, and they not its own."""

app = new_app()
COMMANDS = {"demo": app}


@app.command(
    epilog=(
        'Examples: `deltafan demo "Why is the sky blue?"`, `OPENAI_API_KEY=sk-… deltafan demo --model gpt-5`. '
        "With `OPENAI_API_KEY` (and `OPENAI_BASE_URL`) the real provider answers, else a scripted one; with "
        "`REDIS_URL` that Redis is used, else an embedded Valkey."
    )
)
@takes_settings(ClientSettings, RedisSettings, LogSettings)
def demo(
    given: Given,
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    *,
    json: Json = False,
) -> None:
    """Start everything, stream one prompt through it, stop everything."""
    run(_demo(given, prompt, json))


async def _demo(given: Given, prompt: str, json: bool) -> None:
    configuration = given.load()
    variables = given.as_variables() | {
        variable("queues"): QUEUE,
        variable("host"): "127.0.0.1",
        variable("port"): "0",
        variable("api_keys"): "",
        variable("processes"): "1",
    }
    if "log_level" not in configuration.chosen:
        variables[variable("log_level")] = "error"
    async with stack(configuration, variables) as everything:
        _introduce(everything, configuration)
        printer = FollowPrinter(json=json)
        following = asyncio.create_task(_stream(everything.relay_url, configuration.client.model, prompt, printer))
        failing = asyncio.create_task(everything.failure())
        try:
            await asyncio.wait({following, failing}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise failing.result()
            following.result()
            if everything.emulator is not None and not json:
                await _compare(everything.emulator, printer)
        finally:
            for task in (following, failing):
                task.cancel()
            await asyncio.gather(following, failing, return_exceptions=True)
    if printer.failed:
        raise typer.Exit(FAILED)


def _introduce(everything: Stack, configuration: Configuration) -> None:
    provider = (
        "the scripted provider (set OPENAI_API_KEY to use a real one)"
        if everything.scripted
        else f"{configuration.llm.default_provider} at {everything.provider_url}"
    )
    redis = "an embedded Valkey" if everything.embedded else everything.redis_shown
    note(f"Asking {provider}, over {redis} and the relay at {everything.relay_url}.\n")


async def _compare(emulator: PusherEmulator, printer: FollowPrinter) -> None:
    """Say what a page on Pusher has seen of the same job."""
    channel = job_channel(printer.job or "")
    try:
        await emulator.until(lambda seen: any(message.name == "done" for message in seen.on(channel)), _PUSHER_SECONDS)
    except TimeoutError:
        note(f"Pusher's channel {channel} did not get everything within {_PUSHER_SECONDS:g} s.")
        return
    transcript = Transcript()
    messages = emulator.on(channel)
    for message in messages:
        event = decode(message.data)
        if event is not None:
            transcript.add(event)
    same = "the same text" if transcript.text == printer.transcript.text else "another text"
    note(f"Pusher's channel {channel} (emulated) carried {same} in {len(messages)} messages.")


async def _stream(relay_url: str, model: str, prompt: str, printer: FollowPrinter) -> None:
    """Enqueue over HTTP, follow over SSE."""
    # No limit on the whole: an answer may take long. The relay's heartbeats make silence a sign of trouble.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    try:
        async with aiohttp.ClientSession(relay_url, timeout=timeout) as session:
            began = time.monotonic()
            job = {"model": model, "prompt": prompt, "queue": QUEUE, "sinks": [PUSHER]}
            async with session.post(
                "/v1/jobs", data=dumps(job), headers={"Content-Type": "application/json"}
            ) as answer:
                said = await _json(answer)
            async with aclosing(_events(session, said["events_url"])) as events:
                async for event in events:
                    printer.add(event)
            printer.summary(began)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ChildFailed(f"the relay cannot be reached: {error or type(error).__name__}") from None


async def _json(answer: aiohttp.ClientResponse) -> Any:
    said = await answer.json()
    if answer.status >= 400:
        raise DeltafanError(said["error"]["message"])
    return said


async def _events(session: aiohttp.ClientSession, url: str) -> AsyncGenerator[Event, None]:
    decoder = sse.Decoder()
    async with session.get(url, headers={"Accept": "text/event-stream"}) as answer:
        if answer.status != 200:
            await _json(answer)
        async for data in answer.content.iter_any():
            for frame in decoder.feed(data):
                event = decode(frame.data) if frame.event in EVENT_CLASSES else None
                if event is not None:
                    yield event
                    if event.type == "done":
                        return
    raise ChildFailed("the stream ended before the job did")
