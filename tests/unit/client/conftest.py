"""The environment of a program that uses the client: one provider, and nothing of this machine's own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deltafan.devserver.provider import Provider, Script, running

KEY = "sk-test-0123456789abcdef"
VARIABLES = ("OPENAI_", "DELTAFAN_", "PUSHER_", "GROQ_", "VLLM_")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Provider], None]:
    """Make a provider the environment's."""
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)

    def use(provider: Provider) -> None:
        for name in ("OPENAI", "GROQ"):
            monkeypatch.setenv(f"{name}_API_KEY", KEY)
            monkeypatch.setenv(f"{name}_BASE_URL", provider.base_url)

    return use


@pytest.fixture
def environment(use: Callable[[Provider], None], provider: Provider) -> Provider:
    use(provider)
    return provider


@contextmanager
def running_elsewhere(script: Script) -> Iterator[Provider]:
    """A provider in a loop of its own, for code that ends loops or blocks them."""
    found: list[Provider] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running(script) as provider:
            found.append(provider)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        ready.wait()
        yield found[0]
    finally:
        stop.set()
        thread.join()
