"""What the tests of deltafan.js share: a Node process that follows a job, and a Pusher that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pusher

from deltafan.devserver.pusher import PusherEmulator
from tests.js_kit import Message, Script, script

ENV = {"NODE_OPTIONS": "--experimental-websocket"}
"""Node 20 has a WebSocket behind this flag; later ones have it anyway."""


class Follower:
    """`tests/js/client/follow.mjs` at work."""

    def __init__(self, running: Script) -> None:
        self.script = running

    @property
    def events(self) -> list[Message]:
        return [m["event"] for m in self.script.said if "event" in m]

    async def until(self, key: str, check: Callable[[Any], bool] = lambda _: True, timeout: float = 20.0) -> Any:
        """The value of the next message with that key that fulfils the check."""
        return (await self.script.until(lambda m: key in m and check(m[key]), timeout))[key]

    async def until_event(self, event_id: str) -> Message:
        found: Message = await self.until("event", lambda event: event.get("id") == event_id)
        return found

    async def until_connected(self, connected: bool = True) -> None:
        await self.until("connected", lambda now: now is connected)

    async def until_joined(self) -> None:
        """Wait until it is subscribed and has read what there is: a job that has not begun."""
        await self.until("state", lambda state: state == "queued")

    async def do(self, what: str) -> None:
        await self.script.tell({"do": what})

    async def whole(self, sent: str | None = None) -> Message:
        """Wait for the end of the process, which has judged what it saw; the text must be what was sent."""
        said = await self.script.ended(30)
        assert not [m for m in said if "wrong" in m or "iteration_failed" in m], said
        (found,) = [m for m in said if "whole" in m or "ended_by" in m]
        assert "whole" in found, said
        if sent is not None:
            assert found["whole"] == sent
        return found

    async def ended_by(self) -> Message:
        """Wait for the end of a process whose following ended before the job did; the error that it met."""
        said = await self.script.ended(30)
        (error,) = [m["ended_by"] for m in said if "ended_by" in m]
        return dict(error)


@asynccontextmanager
async def following(
    job: str, check: bool = True, iterate: str = "live", patience: int | None = None, **options: Any
) -> AsyncIterator[Follower]:
    """A Node process that calls `follow(job, options)`.

    :param patience: milliseconds; timers of the process that are to wait longer never fire.
    """
    argument = json.dumps({"job": job, "options": options, "check": check, "iterate": iterate, "patience": patience})
    async with script("client/follow.mjs", argument, env=ENV) as running:
        yield Follower(running)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nobody:
    """A port at which every request is cut off."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._came = asyncio.Semaphore(0)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()  # Node 20's fetch hangs when it is cut before it has asked
        writer.transport.abort()
        self._came.release()

    async def __aenter__(self) -> Nobody:
        self._server = await asyncio.start_server(self._refuse, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def called(self) -> None:
        """Wait for the next request."""
        async with asyncio.timeout(20):
            await self._came.acquire()


class Publisher:
    """Sends a job's events over a Pusher server as a sink does, or as a test needs them."""

    def __init__(self, emulator: PusherEmulator, channel: str, encryption_master_key: str | None = None) -> None:
        self.emulator = emulator
        self.channel = channel
        self._client = pusher.Pusher(
            app_id=emulator.app_id,
            key=emulator.key,
            secret=emulator.secret,
            host=emulator.host,
            port=emulator.port,
            ssl=False,
            encryption_master_key_base64=encryption_master_key,
        )

    @property
    def options(self) -> dict[str, Any]:
        """The client's `pusher` option."""
        emulator = self.emulator
        return {
            "key": emulator.key,
            "host": emulator.host,
            "port": emulator.port,
            "tls": False,
            "channel": self.channel,
        }

    async def send(self, *events: bytes | dict[str, Any]) -> None:
        """Each as its own message, in this order."""
        for event in events:
            value = orjson.loads(event) if isinstance(event, bytes) else event
            await asyncio.to_thread(self._client.trigger, self.channel, value["type"], orjson.dumps(value).decode())

    async def subscribed(self) -> None:
        """Wait until somebody listens."""
        await self.emulator.until(lambda emulator: emulator.subscription_count(self.channel) > 0)


def split(event: bytes, name: str, *lengths: int) -> list[dict[str, Any]]:
    """A delta in parts of these lengths, and the rest, as the sink splits one that is too long for Pusher."""
    whole = orjson.loads(event)
    text, pieces = whole[name], []
    for length in lengths:
        pieces.append(text[:length])
        text = text[length:]
    pieces.append(text)
    return [whole | {name: piece, "part": n, "parts": len(pieces)} for n, piece in enumerate(pieces)]


def chunks(event: bytes, size: int) -> list[dict[str, Any]]:
    """Any other event, as the sink chunks one that is too long."""
    whole, text = orjson.loads(event), event.decode()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    head = {"v": 1, "job": whole["job"], "id": whole["id"], "type": "chunk", "of": whole["type"]}
    return [head | {"part": n, "parts": len(pieces), "data": piece} for n, piece in enumerate(pieces)]


def merged(events: list[bytes]) -> dict[str, Any]:
    """One event for a run of text deltas."""
    values = [orjson.loads(event) for event in events]
    return values[0] | {
        "id": values[-1]["id"],
        "first": values[0].get("first", values[0]["id"]),
        "text": "".join(value["text"] for value in values),
    }
