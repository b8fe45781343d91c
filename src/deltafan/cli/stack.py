"""Everything at once, for `serve` and `demo`: Valkey, a provider, Pusher, workers and a relay in one process tree."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from deltafan.broker.address import redacted
from deltafan.broker.connections import Connections, redis_errors
from deltafan.child import Child, ChildFailed
from deltafan.devserver import pusher
from deltafan.devserver.provider import Script, running
from deltafan.devserver.valkey import EmbeddedValkey
from deltafan.errors import BrokerUnavailable, ConfigurationError
from deltafan.llm import provider_facts
from deltafan.settings import RedisSettings
from deltafan.wiring import Configuration, variable

SCRIPT = Script(rate=60, chunk_size=8, first_token_delay=0.2)
"""The scripted provider at the pace of a quick model: an answer takes three to four seconds."""
_SCRIPTED_KEY = "scripted"  # the provider accepts any


@dataclass(frozen=True, slots=True)
class Stack:
    """Where everything is."""

    relay_url: str
    redis_url: str
    provider_url: str
    """Its base URL, or that of the real provider."""
    embedded: bool
    """Redis is our own, and goes with us."""
    scripted: bool
    """The provider is our own."""
    emulator: pusher.PusherEmulator | None
    """Our own Pusher; `None` when a real one is configured."""
    children: tuple[Child, ...]

    @property
    def redis_shown(self) -> str:
        return redacted(self.redis_url)

    async def failure(self) -> ChildFailed:
        """Wait for the first of our processes to end, which none should."""
        waits = [asyncio.create_task(child.failure()) for child in self.children]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def uses_real_provider(configuration: Configuration) -> bool:
    """Whether the default provider has a key. A provider that needs none is used when it is chosen by name."""
    name = configuration.llm.default_provider
    settings = configuration.llm.providers.get(name)
    return bool(settings and settings.api_key) or (name != "openai" and provider_facts(name).keyless)


@asynccontextmanager
async def stack(
    configuration: Configuration, variables: Mapping[str, str], pusher_port: int = 0
) -> AsyncIterator[Stack]:
    """Start everything; returns when jobs can be enqueued. Nothing of it outlives this process, however that ends.

    A Redis that was chosen is used, else an embedded Valkey; a provider that has a key, else the scripted one; Pusher
    where it is configured, else the emulator.

    :param variables: settings of the processes, as variables.
    :param pusher_port: where the emulator listens if that port is free; 0 takes any.
    :raises BrokerUnavailable: the Redis that was chosen does not answer.
    :raises ChildFailed: a process does not start.
    """
    scripted = not uses_real_provider(configuration)
    async with AsyncExitStack() as opened:
        environment = dict(variables)
        redis_url, embedded = configuration.redis.url, "redis_url" not in configuration.chosen
        if embedded:
            redis_url = (await opened.enter_async_context(EmbeddedValkey())).url
        else:
            await _reached(configuration.redis)
        environment["REDIS_URL"] = redis_url
        if scripted:
            provider_url = (await opened.enter_async_context(running(SCRIPT))).base_url
            environment |= {"OPENAI_BASE_URL": provider_url, "OPENAI_API_KEY": _SCRIPTED_KEY}
            environment["DELTAFAN_DEFAULT_PROVIDER"] = "openai"
        else:
            name = configuration.llm.default_provider
            own = configuration.llm.providers.get(name)
            provider_url = redacted((own and own.base_url) or provider_facts(name).base_url or "(no address)")
        emulator: pusher.PusherEmulator | None = None
        if not configuration.pusher.configured:
            emulator = await _emulator(opened, pusher_port)
            environment |= emulator.variables
            environment["PUSHER_ENCRYPTION_MASTER_KEY"] = base64.b64encode(secrets.token_bytes(32)).decode()
        if not configuration.tokens.token_keys:
            environment[variable("token_keys")] = f"dev={secrets.token_hex(32)}"
        worker = await opened.enter_async_context(Child(["worker"], environment))
        relay = await opened.enter_async_context(Child(["relay"], environment))
        said = await relay.ready()
        await worker.ready()
        yield Stack(said["url"], redis_url, provider_url, embedded, scripted, emulator, (worker, relay))


async def _reached(settings: RedisSettings) -> None:
    """A worker would wait for its Redis: here somebody waits for an answer.

    :raises BrokerUnavailable: it does not answer within the command timeout.
    """
    async with Connections(settings) as connections:
        try:
            async with asyncio.timeout(settings.command_timeout):
                with redis_errors():
                    await connections.commands.execute_command("PING")  # type: ignore[no-untyped-call]
        except (BrokerUnavailable, TimeoutError) as error:
            why = str(error) or f"no answer within {settings.command_timeout:g} s"
            raise BrokerUnavailable(f"REDIS_URL {redacted(settings.url)}: {why}") from None


async def _emulator(opened: AsyncExitStack, port: int) -> pusher.PusherEmulator:
    try:
        return await opened.enter_async_context(pusher.running(port=port))
    except ConfigurationError:
        if port == 0:
            raise
        return await _emulator(opened, 0)  # the usual port is taken
