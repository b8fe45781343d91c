"""The parts that every measurement starts: a Valkey, a provider in a process of its own, and our processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from deltafan.child import Child
from deltafan.devserver.valkey import EmbeddedValkey


@dataclass(frozen=True, slots=True)
class Parts:
    redis_url: str
    provider_url: str
    stack: AsyncExitStack

    @property
    def environment(self) -> dict[str, str]:
        return {
            "REDIS_URL": self.redis_url,
            "OPENAI_BASE_URL": self.provider_url,
            "OPENAI_API_KEY": "sk-bench-0123456789",
            "DELTAFAN_LOG_LEVEL": "error",
        }

    async def child(self, *arguments: str, **environment: str) -> tuple[Child, dict[str, str]]:
        child = await self.stack.enter_async_context(Child(arguments, self.environment | environment))
        return child, await child.ready()


@asynccontextmanager
async def parts(*, rate: float, text_chars: int = 40_000) -> AsyncIterator[Parts]:
    """:param rate: chunks a second of each stream; 0 is as fast as it can."""
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(EmbeddedValkey())
        text = ("All streams run to the sea. " * (text_chars // 28 + 1))[:text_chars]
        provider = Child(["provider", "--port", "0", "--rate", str(rate), "--text", text], {})
        await stack.enter_async_context(provider)
        said = await provider.ready()
        yield Parts(valkey.url, said["base_url"], stack)
