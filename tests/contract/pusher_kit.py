"""The other side of the Pusher emulator: the server library, pusher-js, a bare WebSocket, a web app's endpoints."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from pusher import Pusher

from deltafan.devserver.pusher import PusherEmulator
from tests.js_kit import Message, Script, script

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()


def library(emulator: PusherEmulator, **changes: Any) -> Pusher:
    """The `pusher` package, configured as its users do it. Its calls block: run them with `asyncio.to_thread`."""
    options: dict[str, Any] = {
        "app_id": emulator.app_id,
        "key": emulator.key,
        "secret": emulator.secret,
        "ssl": False,
        "host": emulator.host,
        "port": emulator.port,
        "encryption_master_key_base64": MASTER_KEY,
    }
    return Pusher(**(options | changes))


class Socket:
    """A bare WebSocket, which says and hears frames as they are."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.socket_id = ""

    async def say(self, event: str, data: object = None, **more: object) -> None:
        await self.ws.send_str(orjson.dumps({"event": event, "data": data} | more).decode())

    async def hear(self, timeout: float = 10.0) -> Any:
        """The next frame, its data decoded if it is a string with JSON in it."""
        async with asyncio.timeout(timeout):
            message = await self.ws.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame = orjson.loads(message.data)
        with suppress(TypeError, orjson.JSONDecodeError):
            frame["data"] = orjson.loads(frame["data"])
        return frame

    async def hear_close(self, timeout: float = 10.0) -> tuple[int | None, str]:
        """The close code and reason; there must be no frame before them."""
        async with asyncio.timeout(timeout):
            message = await self.ws.receive()
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            return self.ws.close_code, ""
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra or ""

    async def quiet(self) -> None:
        """Proves that nothing was sent to it so far: the answer to a ping is the next frame."""
        await self.say("pusher:ping", {})
        assert (await self.hear())["event"] == "pusher:pong"

    async def subscribe(self, channel: str, by: Pusher | None = None, user: object = None) -> Any:
        """Subscribes, authorized by the library where `by` is given; answers the frame that comes back."""
        auth = by.authenticate(channel, self.socket_id, user) if by else {}
        auth.pop("shared_secret", None)
        await self.say("pusher:subscribe", {"channel": channel} | auth)
        return await self.hear()


@asynccontextmanager
async def socket(
    emulator: PusherEmulator, path: str | None = None, *, established: bool = True, **query: str
) -> AsyncIterator[Socket]:
    """A bare WebSocket to the emulator; with `established`, the first frame has been heard."""
    query = {"protocol": "7", "client": "test", "version": "1.0.0", "flash": "false"} | query
    query = {name: value for name, value in query.items() if value}
    url = emulator.url + (path or f"/app/{emulator.key}")
    async with aiohttp.ClientSession() as session, session.ws_connect(url, params=query, max_msg_size=0) as ws:
        opened = Socket(ws)
        if established:
            frame = await opened.hear()
            assert frame["event"] == "pusher:connection_established"
            opened.socket_id = frame["data"]["socket_id"]
        yield opened


@dataclass
class Endpoint:
    """A web app's endpoints: it authorizes subscriptions and sign-ins, and takes webhooks."""

    url: str = ""
    library: Pusher | None = None
    user: dict[str, Any] | None = None
    """Who asks, for presence channels and sign-ins."""
    forbidden: set[str] = field(default_factory=set)
    webhooks: list[dict[str, Any]] = field(default_factory=list)
    """Events of valid webhooks."""
    statuses: list[int] = field(default_factory=list)
    """What webhooks are answered next; then 200."""
    redirected: int = 0
    """Webhooks that followed a redirection."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, predicate: Callable[[Endpoint], bool], timeout: float = 20.0) -> None:
        async with asyncio.timeout(timeout):
            while not predicate(self):
                self.changed.clear()
                await self.changed.wait()

    async def authorize(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert self.library is not None
        channel, socket_id = str(form["channel_name"]), str(form["socket_id"])
        if channel in self.forbidden:
            return web.Response(status=403, text="Forbidden")
        user = self.user if channel.startswith("presence-") else None
        answer = self.library.authenticate(channel, socket_id, user)
        if "shared_secret" in answer:  # the package gives bytes here
            answer["shared_secret"] = answer["shared_secret"].decode()
        return web.json_response(answer)

    async def sign_in(self, request: web.Request) -> web.Response:
        assert self.library is not None
        form = await request.post()
        return web.json_response(self.library.authenticate_user(str(form["socket_id"]), self.user))

    async def webhook(self, request: web.Request) -> web.Response:
        assert self.library is not None
        self.changed.set()
        if self.statuses:
            return web.Response(status=self.statuses.pop(0), headers={"Location": "/elsewhere"})
        body = await request.read()
        key, signature = request.headers["X-Pusher-Key"], request.headers["X-Pusher-Signature"]
        valid = self.library.validate_webhook(key, signature, body.decode())
        if valid is None:
            return web.Response(status=401)
        self.webhooks += valid["events"]
        return web.Response()

    async def elsewhere(self, _: web.Request) -> web.Response:
        self.redirected += 1
        return web.Response()


@asynccontextmanager
async def endpoint() -> AsyncIterator[Endpoint]:
    """The endpoints of a web app, on a free port. Give it a `library` before it is asked."""
    opened = Endpoint()
    app = web.Application()
    app.router.add_post("/pusher/auth", opened.authorize)
    app.router.add_post("/pusher/user-auth", opened.sign_in)
    app.router.add_post("/webhook", opened.webhook)
    app.router.add_post("/elsewhere", opened.elsewhere)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        opened.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield opened
    finally:
        await runner.cleanup()


class Browser:
    """pusher-js in Node."""

    def __init__(self, running: Script) -> None:
        self.script = running

    async def do(self, action: str, **more: object) -> None:
        await self.script.tell({"do": action} | more)

    async def until(self, said: str, **fields: object) -> Message:
        """The next thing of a kind that it says, with these fields."""
        return await self.script.until(
            lambda line: line["said"] == said and all(line.get(name) == value for name, value in fields.items())
        )

    async def event(self, event: str, channel: str | None = None) -> Message:
        return await self.until("event", **({"event": event} | ({"channel": channel} if channel else {})))

    async def subscribed(self, channel: str) -> Message:
        await self.do("subscribe", channel=channel)
        return await self.event("pusher:subscription_succeeded", channel)


@asynccontextmanager
async def browser(emulator: PusherEmulator, app: Endpoint | None = None, **options: Any) -> AsyncIterator[Browser]:
    """pusher-js, connected. `app` has the endpoints that it asks for authorization."""
    settings: dict[str, Any] = {
        "cluster": "",
        "wsHost": emulator.host,
        "wsPort": emulator.port,
        "forceTLS": False,
        "enabledTransports": ["ws"],
    }
    if app is not None:
        settings["channelAuthorization"] = {"endpoint": f"{app.url}/pusher/auth"}
        settings["userAuthentication"] = {"endpoint": f"{app.url}/pusher/user-auth"}
    async with script("emulator/client.mjs") as running:
        opened = Browser(running)
        await opened.do("connect", key=emulator.key, options=settings | options)
        await opened.until("state", state="connected")
        yield opened
