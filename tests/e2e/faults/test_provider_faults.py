"""Case 19: every fault of the provider, at every place of an answer. The right end, the right code, the right decision
whether to try again, no token twice, and usage that adds up.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.oracle import problems_of, transcript_of
from deltafan.chaos.sent import sent_problems
from deltafan.devserver.provider import FAULTS, Provider
from deltafan.devserver.provider.faults import REFUSALS
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.errors import CompletionError
from deltafan.events import Error, Event, Meta, TextDelta, Usage
from deltafan.llm import Completions, Request
from deltafan.llm.client import OpenAICompletions
from tests.conftest import StartWorker, completions_of
from tests.unit.llm.server import HELLO, frame, serving, settings, text

TEXT = "Ελλάδα, 日本語 🏳️‍🌈."
ANSWERS: dict[str, dict[str, str]] = {
    "text": {"text": TEXT},
    "reasoning": {"text": TEXT, "reasoning": "naïve — so"},
    "calls": {"text": "I look. ", "tool_calls": '[{"name":"look","arguments":{"at":"Ζωή"}},{"name":"go"}]'},
}
"""What the model says, by kind; in chunks of three characters."""
RETRIES = 3
"""How often a worker's client asks before it gives up, while nothing of an answer has been seen."""
_NUMBERS = itertools.count()
AT_ONCE = 48
"""Jobs that run at the same time; more would have a slow machine's timeouts strike where none should."""

IN_THE_STREAM = {
    "cut": "connection",
    "close": "malformed_stream",
    "malformed": "malformed_stream",
    "error": "server_error",
}
"""Faults that break an answer off after so many chunks, and the code that they must have."""
REFUSED = {
    "rate_limit=0": "rate_limit",
    "quota": "quota",
    "server_error": "server_error",
    "server_error=503": "server_error",
    "authentication": "authentication",
    "permission": "permission",
    "model_not_found": "model_not_found",
    "context_length": "context_length",
    "bad_request": "bad_request",
}
HARMLESS = (
    "split",
    "split=1",
    "split=5",
    "crlf",
    "split,crlf",
    "no_done",
    "no_usage",
    "late_usage",
    "slow_headers=0.05",
)
WRITTEN = {"chat": ("", "split"), "responses": ("",)}
"""How the bytes of a broken answer are written: at once, or in writes of a few bytes."""


def test_every_fault_has_a_test() -> None:
    tested = {*IN_THE_STREAM, *(fault.partition("=")[0] for fault in REFUSED), "content_filter", "stall"}
    assert tested >= REFUSALS
    assert tested | {one.partition("=")[0] for fault in HARMLESS for one in fault.split(",")} == set(FAULTS)


class Responses:
    """A ring that asks by the Responses API."""

    def __init__(self, inner: Completions) -> None:
        self._inner = inner

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        return self._inner.stream(replace(request, api="responses"))


@dataclass(frozen=True)
class Case:
    """One job, and how it must end."""

    answer: str
    faults: tuple[str, ...]
    code: str | None = None
    """Of the error of each attempt that fails."""
    errors: tuple[bool, ...] = ()
    """Whether each error of the log says that it will be retried."""
    attempts: int = 1
    requests: int = 1
    """How often the provider is asked."""
    reason: str = "stop"
    source: str = "reported"
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.answer} {','.join(self.faults)}"


@dataclass(frozen=True)
class Place:
    """A worker that asks a provider, and how to try cases on it."""

    queue: AsyncQueue
    provider: Provider
    api: str

    async def chunks(self, answer: str) -> int:
        """Of an answer that nothing befalls."""
        [record] = (await self._run(Case(answer, (), reason=_reason(answer))))[1]
        return record.chunks

    async def try_all(self, cases: Iterable[Case]) -> None:
        """:raises AssertionError: names every case that did not end as it should."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def check(case: Case) -> list[str]:
            async with slots:
                events, records = await self._run(case)
                return [f"{self.api} {case}: {problem}" for problem in await self._problems(case, events, records)]

        found = await asyncio.gather(*map(check, cases))
        assert len(found) > 1
        problems = [problem for each in found for problem in each]
        assert not problems, "\n".join(problems)

    async def _run(self, case: Case) -> tuple[list[Event], list[RequestRecord]]:
        prompt = f"{case}{next(_NUMBERS)}"
        options = {**ANSWERS[case.answer], "key": prompt.replace(":", " "), "chunk_size": "3"}
        options["fault"] = ",".join(case.faults)
        job = await self.queue.enqueue(
            {"model": "m", "prompt": prompt, "params": {"metadata": options}, "max_attempts": 2} | dict(case.fields)
        )
        events = [event async for event in job.events()]
        told = [event for event in events if isinstance(event, Usage)]
        status = await job.status()
        total = functools.reduce(Usage.__add__, (replace(usage, id=None, job=None, first=None) for usage in told))
        assert status.usage is not None
        assert {name: value for name, value in status.usage.items() if value is not None} == {
            name: getattr(total, name) for name in Usage.__slots__ if getattr(total, name) is not None
        }
        assert (status.error or {}).get("code") == (case.code if case.reason == "error" else None)
        return events, [record for record in self.provider.requests if record.key.endswith(options["key"])]

    async def _problems(self, case: Case, events: list[Event], records: list[RequestRecord]) -> list[str]:
        expected_text = ANSWERS[case.answer]["text"]
        broken = case.reason in ("error", "content_filter")
        found = problems_of(events, text=None if broken else expected_text) + sent_problems(events, records)
        transcript = transcript_of(events)
        errors = [event for event in events if isinstance(event, Error)]
        usages = [event for event in events if isinstance(event, Usage)]
        # One that was given up before its answer began may not have reached the provider: a busy machine is slow.
        unheard = case.code == "timeout_first_token" and 0 < len(records) < case.requests
        facts = {
            "text": (expected_text.startswith(transcript.text), True),
            "finish reason": (transcript.done and transcript.done.finish_reason, case.reason),
            "codes": ({error.code for error in errors}, {case.code} if errors else set()),
            "retried": (tuple(error.will_retry for error in errors), case.errors),
            "attempts": (sum(isinstance(event, Meta) for event in events), case.attempts),
            "requests": (case.requests if unheard else len(records), case.requests),
            "usages": (len(usages), case.attempts),
            "usage": (usages[-1].source, case.source),
        }
        if broken and (longest := max(record.text_length for record in records)) < len(transcript.text):
            found.append(f"{len(transcript.text)} characters, and the provider sent {longest}")
        return found + [f"{name}: {was!r}, not {wanted!r}" for name, (was, wanted) in facts.items() if was != wanted]


def _reason(answer: str) -> str:
    return "tool_calls" if answer == "calls" else "stop"


def _broken(answer: str, fault: str, at: int, code: str, written: str, **fields: Any) -> list[Case]:
    """A fault after so many chunks: of every answer, and of the first one only."""
    unseen = RETRIES if at == 0 else 1  # while nothing was seen, the client itself asks again
    faults = tuple(filter(None, (f"{fault}={at + (fault == 'malformed')}", written)))
    first_only = (f"{faults[0]}*1", *faults[1:])
    mended = Case(answer, first_only, requests=2, reason=_reason(answer), fields=fields)
    if at:
        mended = replace(mended, code=code, errors=(True,), attempts=2)
    return [
        Case(answer, faults, code, (True, False), 2, 2 * unseen, "error", "estimated", fields),
        mended,
    ]


@pytest_asyncio.fixture(params=["chat", "responses"])
async def place(
    request: pytest.FixtureRequest, queue: AsyncQueue, provider: Provider, start_worker: StartWorker
) -> AsyncIterator[Place]:
    async with completions_of(provider, attempts=RETRIES) as (completions, llm):
        asked: Completions = completions if request.param == "chat" else Responses(completions)
        await start_worker(services={"completions": asked, "llm": llm})
        yield Place(queue, provider, request.param)


@pytest.mark.parametrize("fault", IN_THE_STREAM)
async def test_an_answer_that_breaks_off_at_any_chunk_is_tried_again_and_no_token_comes_twice(
    place: Place, fault: str
) -> None:
    cases: list[Case] = []
    for answer in ANSWERS:
        last = await place.chunks(answer) - (fault == "malformed")
        for at in range(last + 1):
            for written in WRITTEN[place.api]:
                cases += _broken(answer, fault, at, IN_THE_STREAM[fault], written)
    await place.try_all(cases)


async def test_an_answer_that_stalls_at_any_chunk_is_given_up_in_time_and_tried_again(place: Place) -> None:
    cases: list[Case] = []
    for answer in ANSWERS:
        for at in range(1, await place.chunks(answer) + 1):
            cases += _broken(answer, "stall", at, "timeout_stall", "", first_token_timeout=20.0, stall_timeout=1.0)
        cases += _broken(answer, "stall", 0, "timeout_first_token", "", first_token_timeout=1.0, stall_timeout=20.0)
    await place.try_all(cases)


async def test_an_answer_that_is_filtered_at_any_chunk_ends_there_and_is_not_tried_again(place: Place) -> None:
    cases = [
        Case(answer, (f"content_filter={at}", *filter(None, [written])), reason="content_filter")
        for answer in ANSWERS
        for at in range(await place.chunks(answer) + 1)
        for written in WRITTEN[place.api]
    ]
    await place.try_all(cases)


@pytest.mark.topologies("valkey", "cluster", "sentinel")
async def test_a_refused_request_is_tried_again_only_where_that_can_help(place: Place) -> None:
    cases: list[Case] = []
    for fault, code in REFUSED.items():
        again = CompletionError.CODES[code]
        failed = Case("text", (fault,), code, (True, False) if again else (False,), 1 + again, reason="error")
        cases.append(replace(failed, requests=2 * RETRIES if again else 1, source="estimated"))
        cases.append(Case("text", (f"{fault}*1",), requests=2) if again else replace(cases[-1], faults=(f"{fault}*1",)))
    await place.try_all(cases)


async def test_however_an_answer_is_written_it_arrives_whole(place: Place) -> None:
    cases = [
        Case(
            answer,
            tuple(fault.split(",")),
            reason=_reason(answer),
            source="estimated" if fault == "no_usage" else "reported",
        )
        for answer in ANSWERS
        for fault in HARMLESS
    ]
    await place.try_all(cases)


@pytest.mark.parametrize("in_order", [True, False], ids=["ended", "cut"])
async def test_an_answer_cut_after_any_byte_is_whole_or_an_error(in_order: bool) -> None:
    """It is whole from its finish reason on; what it used is estimated until its usage has come."""
    frames = [frame(chunk) for chunk in [text("Ζω"), text("ή 🏳️‍🌈"), *HELLO[2:]]]
    body = b"".join(frames)
    blank = 2 if in_order else 0  # the last event of a body that ended in order needs no blank line after it
    first, second, finished, used = (sum(map(len, frames[:n])) - blank for n in (1, 2, 3, 4))

    async def handler(request: web.Request) -> web.StreamResponse:
        at = int((await request.json())["messages"][0]["content"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.content_length = at if in_order else len(body) + 1
        await response.prepare(request)
        await response.write(body[:at])
        if not in_order and request.transport is not None:
            request.transport.close()
        return response

    async def ask(client: OpenAICompletions, at: int) -> tuple[str, str, str]:
        said, source = "", ""
        try:
            async for event in client.stream(Request("m", [{"role": "user", "content": str(at)}], timeout=30.0)):
                said += event.text if isinstance(event, TextDelta) else ""
                source = event.source if isinstance(event, Usage) else source
        except CompletionError as error:
            return said, error.code, source
        return said, "", source

    async with serving(handler) as url, OpenAICompletions(settings(url)) as client:
        for at in range(len(body) + 1):
            said, code, source = await ask(client, at)
            assert said == ("Ζωή 🏳️‍🌈" if at >= second else "Ζω" if at >= first else ""), at
            broken = "malformed_stream" if in_order else "connection"
            if at < finished:
                assert (code, source) == (broken, ""), at
            else:
                assert (code, source) == ("", "reported" if at >= used else "estimated"), at
