"""The SDK's clients, one a provider, made at first use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx2

from deltafan.errors import CompletionError
from deltafan.llm import failures
from deltafan.llm.providers import Provider
from deltafan.llm.settings import LLMSettings, ProviderSettings

if TYPE_CHECKING:
    import openai

_KEEPALIVE = 30.0  # seconds; spares the next first token a TLS handshake
_MAX_ERROR_BODY = 64 * 1024  # the SDK reads the body of an error to its end, wherever that is
_RAW = {"X-Stainless-Raw-Response": "stream"}  # asks the SDK for the response with its body unread
_NO_KEY = "none"  # the SDK insists on a key; keyless servers do not read it


class Connections:
    """Owns the clients and their connections. Close it."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}

    async def aclose(self) -> None:
        clients = list(self._clients.values())
        self._clients.clear()
        for client in clients:
            await client.close()

    def key(self, provider: Provider) -> str:
        """The provider's key; empty if there is none. A line end that came along from a file is not a part of it."""
        secret = self._override(provider).api_key
        return secret.get_secret_value().strip() if secret else ""

    def client(self, provider: Provider, *, prefill: bool = False) -> openai.AsyncOpenAI:
        """The client of a provider, at the address where it serves prefill if that is wanted.

        :raises CompletionError: `bad_request` without an address, `authentication` without a key that is needed.
        """
        override = self._override(provider)
        base_url = override.base_url or (provider.prefill_base_url if prefill else None) or provider.base_url
        if not base_url:
            raise CompletionError("bad_request", f"provider {provider.name!r} has no base_url: set one")
        key = self.key(provider)
        # A server of one's own behind a public provider's name (a proxy, a test server) may do without.
        own_server = override.base_url is not None and provider.base_url is not None
        if not key and not (provider.keyless or own_server):
            names = " or ".join(provider.key_names)
            raise CompletionError("authentication", f"no API key for provider {provider.name!r}: set {names}")
        client = self._clients.get((provider.name, base_url))
        if client is None:
            client = self._clients[provider.name, base_url] = self._connect(base_url, key)
        return client

    async def post(
        self, stack: AsyncExitStack, provider: Provider, path: str, body: dict[str, Any], *, prefill: bool = False
    ) -> httpx2.Response:
        """Send one request. The body of its answer is not read yet; the stack closes it.

        The SDK's typed methods are not used: they walk through what is sent by its types, which takes seconds for ten
        thousand messages, and holds up every other stream.

        :raises CompletionError: as `client`, or `bad_request`: JSON or a header cannot carry the request.
        :raises openai.OpenAIError: the provider refused, or cannot be reached.
        """
        client = self.client(provider, prefill=prefill)
        try:
            response = await client.post(path, cast_to=httpx2.Response, body=body, options={"headers": _RAW})
        except RecursionError:
            raise CompletionError("bad_request", "the request cannot be sent: it is nested too deeply") from None
        except (TypeError, ValueError) as exc:
            # What JSON or a header cannot carry: a lone surrogate, NaN, a line end in a key.
            raise CompletionError("bad_request", failures.redact(f"the request cannot be sent: {exc}")) from None
        stack.push_async_callback(response.aclose)
        return response

    def _override(self, provider: Provider) -> ProviderSettings:
        return self._settings.providers.get(provider.name) or ProviderSettings()

    def _connect(self, base_url: str, key: str) -> openai.AsyncOpenAI:
        import openai

        # To the aiohttp below, 0 connections are no limit, where httpx2's own `None` would leave aiohttp's 100.
        limits = httpx2.Limits(max_connections=self._settings.max_connections, keepalive_expiry=_KEEPALIVE)
        timeout = httpx2.Timeout(None, connect=self._settings.connect_timeout)
        client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            # Compression would hold tokens back to fill its blocks.
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAioHttpClient(
                timeout=timeout, limits=limits, event_hooks={"response": [_bound_error]}
            ),
        )
        # The SDK takes these from OPENAI_* variables; they are not for every provider to see.
        client.organization = client.project = client.admin_api_key = None
        return client


async def _bound_error(response: httpx2.Response) -> None:
    if response.is_error and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Beginning(response.stream)


class _Beginning(httpx2.AsyncByteStream):
    """The first bytes of a body, about `_MAX_ERROR_BODY` of them."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MAX_ERROR_BODY
        async for piece in self._body:
            yield piece
            left -= len(piece)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._body.aclose()
