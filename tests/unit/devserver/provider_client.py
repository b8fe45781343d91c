"""What the provider's tests share: raw requests over real HTTP, and the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict
from openai import AsyncOpenAI

from deltafan.devserver.provider import Provider

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Say something."}]


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool = True
    """False: the connection closed before the end of the body."""

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.replace(b"\r\n", b"\n").split(b"\n\n") if event]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [orjson.loads(event[6:]) for event in self.events if event != b"data: [DONE]"]

    @property
    def contents(self) -> list[str]:
        """The text pieces of choice 0, the empty one of the role chunk left out."""
        deltas = [c["delta"] for chunk in self.chunks for c in chunk.get("choices", ()) if c["index"] == 0]
        return [delta["content"] for delta in deltas if delta.get("content")]

    @property
    def text(self) -> str:
        return "".join(self.contents)

    @property
    def finish_reasons(self) -> list[str]:
        return [c["finish_reason"] for k in self.chunks for c in k.get("choices", ()) if c["finish_reason"]]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = orjson.loads(self.body)["error"]
        return error


async def ask(
    provider: Provider,
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
    *,
    path: str = "/chat/completions",
    **params: Any,
) -> Reply:
    """One request on a connection of its own, streamed unless `stream=False`."""
    body = {"model": "m", "messages": ASK, "stream": True, **params}
    async with (
        aiohttp.ClientSession() as session,
        session.post(provider.base_url + path, json=body, headers=CIMultiDict(headers or {})) as response,
    ):
        received, complete = bytearray(), True
        try:
            async for data in response.content.iter_any():
                received += data
        except aiohttp.ClientPayloadError:
            complete = False
        return Reply(response.status, response.headers, bytes(received), complete)


async def get(provider: Provider, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
    """A request to a path of the server, without `/v1` unless the path has it."""
    url = provider.base_url.removesuffix("/v1") + path
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return Reply(response.status, response.headers, await response.read())


@asynccontextmanager
async def sdk(provider: Provider) -> AsyncIterator[AsyncOpenAI]:
    """The official client, without retries."""
    async with AsyncOpenAI(base_url=provider.base_url, api_key="sk-test-secret", max_retries=0) as client:
        yield client
