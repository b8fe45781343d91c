"""The client without `await`: in threads, inside a running loop, streaming and all."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltafan.client import Result, SyncClient
from deltafan.devserver.provider import Echo, Provider, Script, Text, parse_fault, running
from deltafan.errors import AuthenticationError, ValidationError
from deltafan.events import Event, TextDelta
from tests.oracle import check_whole
from tests.unit.client.conftest import running_elsewhere

Use = Callable[[Provider], None]


async def test_all_of_it_from_a_thread(use: Use) -> None:
    async with running(Script(source=Echo())) as provider:
        use(provider)

        def work() -> None:
            with SyncClient("gpt-5-mini") as client:
                events = list(client.stream("Why?"))
                assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Why?"
                assert client.invoke("Why not?").text == "Why not?"
                assert client.get_response("And now?")["output"] == "And now?"
                assert "event: done" in list(client.stream_sse("Why?"))[-1]
                got: list[Event] = []
                client.stream_to_sink(got.append, "To me.")
                check_whole(got, "To me.")
                results = client.run_batch([client.inner.invoke(str(n)) for n in range(5)], 2)
                assert [r.text for r in results if isinstance(r, Result)] == list("01234")
                assert dict(client.iter_batch([client.inner.invoke("a")])).keys() == {0}

        await asyncio.to_thread(work)


async def test_many_threads_share_one_client_and_one_loop(use: Use) -> None:
    async with running(Script(source=Echo())) as provider:
        use(provider)
        with ThreadPoolExecutor(8) as threads:
            client = SyncClient("gpt-5-mini")
            loop = asyncio.get_running_loop()
            results = await asyncio.gather(*(loop.run_in_executor(threads, client.invoke, str(n)) for n in range(40)))
            await loop.run_in_executor(threads, client.close)
    assert [result.text for result in results] == [str(n) for n in range(40)]
    assert sum(thread.name == "deltafan-portal" for thread in threading.enumerate()) == 1


def test_inside_a_running_loop(use: Use) -> None:
    """As in Jupyter: a plain function, called where a loop runs already."""

    async def cell() -> str:
        with SyncClient("gpt-5-mini") as client:
            return "".join(e.text for e in client.stream("Why?") if isinstance(e, TextDelta))

    with running_elsewhere(Script(source=Echo())) as provider:
        use(provider)
        assert asyncio.run(cell()) == "Why?"


async def test_leaving_the_loop_early_closes_the_providers_connection(use: Use) -> None:
    async with running(Script(source=Text("word " * 1000), rate=100)) as provider:
        use(provider)

        def work() -> None:
            with SyncClient("gpt-5-mini") as client:
                for event in client.stream("Why?"):
                    if isinstance(event, TextDelta):
                        break

        await asyncio.to_thread(work)
        await provider.until(lambda requests: requests[-1].client_closed)


async def test_errors_come_through_as_they_are(use: Use) -> None:
    async with running(Script(require_key="sk-another")) as provider:
        use(provider)

        def work() -> None:
            with SyncClient("gpt-5-mini") as client:
                with pytest.raises(AuthenticationError):
                    client.invoke("Why?")
                with pytest.raises(ValidationError):
                    client.stream()

        await asyncio.to_thread(work)


def test_an_interrupted_call_closes_the_providers_connection(use: Use) -> None:
    class Interrupted(BaseException):
        """As Ctrl-C, without the risk of ending the tests."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    def when_asked() -> None:
        while not provider.requests:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with running_elsewhere(Script(source=Text("Hello."), faults=(parse_fault("stall=1"),))) as provider:
            use(provider)
            client = SyncClient("gpt-5-mini")
            threading.Thread(target=when_asked).start()
            with pytest.raises(Interrupted):
                client.invoke("Why?")
            while not provider.requests[-1].client_closed:  # the test's time limit ends it
                time.sleep(0.01)
            client.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(ValidationError, match=r"^attempts: "):
        SyncClient("gpt-5-mini", attempts=-1)
