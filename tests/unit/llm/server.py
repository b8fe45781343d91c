"""A provider on loopback whose answer each test writes itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from deltafan.llm import LLMSettings, ProviderSettings

KEY = "sk-test-0123456789abcdef"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serves `handler` for whatever is posted and gives the base URL."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application()
    app.router.add_post("/v1/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()
        for _ in range(3):  # the loop closes what was aborted in its next rounds; after them it is gone itself
            await asyncio.sleep(0)


def settings(base_url: str, *, provider: str = "openai", key: str | None = KEY, **more: Any) -> LLMSettings:
    return LLMSettings(
        default_provider=provider, providers={provider: ProviderSettings(base_url=base_url, api_key=key)}, **more
    )


def frame(chunk: Any) -> bytes:
    return b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n"


def delta(finish: str | None = None, *, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def text(content: str) -> dict[str, Any]:
    return delta(content=content)


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
HELLO: list[Any] = [text("Hel"), text("lo"), delta("stop"), {"choices": [], "usage": USAGE}, b"[DONE]"]


def answering(*chunks: Any, raw: bytes | None = None, content_type: str = "text/event-stream") -> Handler:
    """Answers with these chunks, or with these bytes, and closes in good order."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await response.write(raw if raw is not None else b"".join(frame(chunk) for chunk in chunks))
        await response.write_eof()
        return response

    return handler


def failing(status: int, body: Any = None, headers: dict[str, str] | None = None) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=headers, content_type="text/html")
        return web.json_response(body, status=status, headers=headers)

    return handler


class Hanging:
    """Answers with these chunks and then holds the connection until the client closes it, which `closed` tells."""

    def __init__(self, *chunks: Any, headers: bool = True) -> None:
        self.closed = asyncio.Event()
        self.begun = asyncio.Event()
        self._chunks = chunks
        self._headers = headers

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            if self._headers:
                await response.prepare(request)
                for chunk in self._chunks:
                    await response.write(frame(chunk))
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()
        return response
