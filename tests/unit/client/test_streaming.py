"""A completion as SSE text, and in sinks and functions: what a reader of a job would see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from deltafan.client import OpenAIClient
from deltafan.client.frames import sse_frames
from deltafan.devserver.provider import Provider, Script, Text, parse_fault, running
from deltafan.errors import CompletionError, ValidationError
from deltafan.events import Done, Error, Event, Meta, TextDelta
from deltafan.llm.limits import Budget, Limiter
from deltafan.sinks.memory import MemorySink
from deltafan.sinks.telling import Telling
from deltafan.sse import Decoder
from deltafan.wire import decode
from tests.oracle import check_whole

Use = Callable[[Provider], None]
TEXT = "One, two,\u2028three; the quick brown fox. " * 5


def read(frames: Sequence[str]) -> list[Event]:
    """The events of an SSE text, as a page reads them."""
    decoder = Decoder()
    events = []
    for sse in decoder.feed("".join(frames).encode()):
        event = decode(sse.data)
        assert event is not None
        assert (sse.id, sse.event) == (str(event.id), event.type)
        events.append(event)
    return events


async def keep(frames: AsyncGenerator[str, None], into: list[str]) -> None:
    """Also those before an error."""
    async for frame in frames:
        into.append(frame)  # noqa: PERF401


async def test_sse_frames_are_those_of_a_job(use: Use) -> None:
    async with running(Script(source=Text(TEXT))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            frames = [frame async for frame in client.stream_sse("Why?")]
    events = read(frames)
    transcript = check_whole(events, TEXT)
    assert transcript.usage is not None
    assert transcript.done is not None
    assert set(transcript.done.timings) == {"first_token", "total"}
    assert isinstance(events[0], Meta)
    assert (events[0].model, events[0].provider, events[0].attempt) == ("gpt-5-mini", "openai", 1)


async def test_an_sse_stream_of_a_failed_completion_ends_with_done(use: Use) -> None:
    async with running(Script(source=Text(TEXT), faults=(parse_fault("cut=3"),))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            events = read([frame async for frame in client.stream_sse("Why?")])
    check_whole(events)
    assert isinstance(events[-2], Error)
    assert (events[-2].code, events[-1].finish_reason) == ("connection", "error")  # type: ignore[attr-defined]


async def test_a_fault_of_the_program_is_told_as_done_and_raised() -> None:
    async def broken() -> AsyncGenerator[Event, None]:
        yield TextDelta("Hel")
        raise LookupError("a secret path")

    frames: list[str] = []
    with pytest.raises(LookupError):
        await keep(sse_frames(broken(), Telling(model="m")), frames)
    events = read(frames)
    check_whole(events, "Hel")
    assert "secret" not in "".join(frames)


async def test_silence_is_filled_with_comments(use: Use) -> None:
    async with running(Script(source=Text(TEXT), faults=(parse_fault("stall=2"),))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            frames = client.stream_sse("Why?", heartbeat=0.1)
            seen = ""
            async for frame in frames:
                seen += frame
                if frame.startswith(":") and "text_delta" in seen:
                    break
            await frames.aclose()
            await provider.until(lambda requests: requests[-1].client_closed)


async def test_a_slow_reader_of_sse_holds_up_the_provider_and_not_memory(use: Use) -> None:
    taken = 0

    async def source() -> AsyncGenerator[Event, None]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield TextDelta("word ")
        yield Done("stop")

    frames = sse_frames(source(), Telling(model="m"))
    await anext(frames)
    for _ in range(100):
        await asyncio.sleep(0)
    assert taken < 30
    rest = [frame async for frame in frames]
    assert len(rest) == 1001


async def test_leaving_an_sse_stream_closes_the_providers_connection(use: Use) -> None:
    async with running(Script(source=Text(TEXT), rate=50)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            frames = client.stream_sse("Why?")
            assert "meta" in await anext(frames)
            assert "text_delta" in await anext(frames)
            await frames.aclose()
            await provider.until(lambda requests: requests[-1].client_closed)


async def test_a_sink_gets_the_whole_story(environment: Provider) -> None:
    sink = MemorySink()
    async with OpenAIClient("gpt-5-mini") as client:
        transcript = await client.stream_to_sink(sink, "Why?")
    check_whole(sink.events, transcript.text)
    assert transcript.text == environment.requests[-1].text
    assert not sink.closed


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_function_gets_every_event_in_order(environment: Provider, kind: str) -> None:
    got: list[Event] = []

    async def take(event: Event) -> None:
        await asyncio.sleep(0)
        got.append(event)

    async with OpenAIClient("gpt-5-mini") as client:
        transcript = await client.stream_to_sink(take if kind == "async" else got.append, "Why?")
    check_whole(got, transcript.text)
    assert transcript.text == environment.requests[-1].text


async def test_a_function_is_told_of_a_failure_which_is_raised(use: Use) -> None:
    got: list[Event] = []
    async with running(Script(faults=(parse_fault("authentication"),))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            with pytest.raises(CompletionError):
                await client.stream_to_sink(got.append, "Why?")
    assert [event.type for event in got] == ["meta", "error", "done"]


async def test_what_a_function_raises_ends_the_completion(use: Use) -> None:
    def take(event: Event) -> None:
        if isinstance(event, TextDelta):
            raise ZeroDivisionError

    async with running(Script(source=Text(TEXT), rate=50)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            with pytest.raises(ZeroDivisionError):
                await client.stream_to_sink(take, "Why?")
            await provider.until(lambda requests: requests[-1].client_closed)


async def _cancelled_after_text(client: OpenAIClient, sink: object, seen: asyncio.Event) -> None:
    task = asyncio.create_task(client.stream_to_sink(sink, "Why?"))  # type: ignore[arg-type]
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_stream_still_tells_its_sink_that_it_ended(use: Use) -> None:
    seen = asyncio.Event()

    class Watching(MemorySink):
        async def emit(self, batch: Sequence[Event]) -> None:
            await super().emit(batch)
            if any(isinstance(event, TextDelta) for event in batch):
                seen.set()

    function_got: list[Event] = []

    def take(event: Event) -> None:
        function_got.append(event)
        if isinstance(event, TextDelta):
            seen.set()

    async with running(Script(source=Text(TEXT), rate=50)) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            sink = Watching()
            await _cancelled_after_text(client, sink, seen)
            check_whole(sink.events)
            seen.clear()
            await _cancelled_after_text(client, take, seen)
            check_whole(function_got)
    for events in (sink.events, function_got):
        assert events[-1].finish_reason == "cancelled"  # type: ignore[attr-defined]


async def test_what_is_no_sink_is_refused(environment: Provider) -> None:
    async with OpenAIClient("gpt-5-mini") as client:
        with pytest.raises(ValidationError, match=r"^sink: "):
            await client.stream_to_sink("chat-7", "Why?")  # type: ignore[arg-type]
    assert environment.requests == []


async def test_a_function_that_fails_at_cancellation_does_not_swallow_it(use: Use) -> None:
    got = asyncio.Event()

    def function(event: Event) -> None:
        if isinstance(event, TextDelta):
            got.set()
        if isinstance(event, Done):
            raise LookupError("a broken sink")

    async with running(Script(source=Text(TEXT), faults=(parse_fault("stall=3"),))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            streaming = asyncio.create_task(client.stream_to_sink(function, "Why?"))
            await got.wait()
            streaming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await streaming
    assert streaming.cancelled()


async def test_a_timeout_tells_the_seconds_that_were_asked_for(use: Use) -> None:
    async with running(Script(source=Text(TEXT), faults=(parse_fault("stall=3"),))) as provider:
        use(provider)
        async with OpenAIClient("gpt-5-mini") as client:
            with pytest.raises(CompletionError, match=r"^the request took longer than 0\.3 s$"):
                await client.invoke("Why?", timeout=0.3)
        limiter = Limiter(Budget(requests=100))
        async with OpenAIClient("gpt-5-mini", tools=[lookup], limiter=limiter, fallbacks=["groq/x"]) as client:
            with pytest.raises(CompletionError, match=r"longer than 0\.3 s$"):
                await client.invoke("Why?", timeout=0.3)


def lookup(word: str) -> str:
    """Look a word up."""
    return word
