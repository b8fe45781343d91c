"""Jobs with `fallbacks`: what the log, the record and every follower know when another model takes over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, Text, ToolCall, parse_faults, running
from deltafan.errors import JobFailed
from deltafan.events import Done, Error, Event, Meta
from deltafan.llm import LLMSettings, ProviderSettings, Retrying
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.tools import tool
from tests.conftest import StartWorker
from tests.e2e.cli_kit import cli
from tests.e2e.js_client_kit import following
from tests.e2e.relay_kit import running_relay
from tests.js_kit import needs_node
from tests.oracle import check_whole

TEXT = "Ελλάδα, 日本語 and a flag 🏳️‍🌈, as the model says it. " * 3
JOB: dict[str, Any] = {
    "model": "openai/gpt",
    "fallbacks": ["groq/gone", "vllm/llama"],
    "prompt": "x",
    "metadata": {"chat": 7},
    "max_attempts": 1,
}


@asynccontextmanager
async def models(faults: str, **more: Any) -> AsyncIterator[tuple[dict[str, Any], Provider]]:
    """Services whose `openai` has faults, whose `groq` refuses the key, and whose `vllm` answers; and the last."""
    script = Script(source=Text(TEXT), chunk_size=3, **more)
    async with (
        running(Script(source=Text(TEXT), chunk_size=3, faults=parse_faults(faults), **more)) as bad,
        running(Script(faults=parse_faults("authentication"))) as refusing,
        running(script) as good,
    ):
        by_name = {"openai": bad, "groq": refusing, "vllm": good}
        settings = LLMSettings(
            providers={
                name: ProviderSettings(base_url=provider.base_url, api_key="sk-test-0123456789abcdef")
                for name, provider in by_name.items()
            }
        )
        async with OpenAICompletions(settings) as client:
            yield {"completions": Retrying(client, attempts=2, backoff=0.001), "llm": settings}, good


def flags(events: list[Event]) -> list[tuple[bool, bool]]:
    return [(event.restart, event.continued) for event in events if isinstance(event, Meta)]


async def test_a_model_that_cannot_be_asked_is_replaced_in_silence(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with models("server_error") as (services, good):
        await start_worker(services=services)
        job = await queue.enqueue(**JOB)
        events = [event async for event in job.events()]
        check_whole(events, TEXT)
        assert flags(events) == [(False, False)]
        assert good.requests[0].model == "llama"


@pytest.mark.parametrize(("on_takeover", "flag"), [("restart", (True, False)), ("continue", (False, True))])
async def test_a_model_that_breaks_off_is_replaced_within_the_attempt(
    queue: AsyncQueue, start_worker: StartWorker, on_takeover: str, flag: tuple[bool, bool]
) -> None:
    async with models("cut=6") as (services, _):
        await start_worker(services=services)
        job = await queue.enqueue(**JOB, on_takeover=on_takeover)
        events = [event async for event in job.events()]
        status = await job.status()
    check_whole(events, TEXT)
    assert flags(events) == [(False, False), flag]
    first, second = (event for event in events if isinstance(event, Meta))
    assert first.id is not None
    assert second.id is not None
    assert (second.id.attempt, second.attempt, second.model, second.provider) == (1, 1, "llama", "vllm")
    assert second.id.seq > 0
    assert second.metadata == {"chat": 7}
    assert 0 <= second.created - first.created < 60_000
    assert (status.state, status.attempt) == ("done", 1)
    assert status.usage is not None
    assert status.usage["source"] == "estimated"
    record = await queue.connections.commands.hget(f"deltafan:{{0}}:job:{job.id}", "chars")
    assert int(record or 0) == len(TEXT)


async def test_the_command_line_enqueues_fallbacks_and_shows_who_takes_over(
    queue: AsyncQueue, redis_url: str, start_worker: StartWorker
) -> None:
    async with models("cut=6") as (services, _):
        await start_worker(services=services)
        asked = ("--model", "openai/gpt", "--fallback", "groq/gone", "--fallback", "vllm/llama", "x", "--follow")
        ended = await cli("enqueue", *asked, REDIS_URL=redis_url)
    assert ended.code == 0, ended.err
    assert ended.out.endswith(f"\n{TEXT}\n")
    assert "attempt 1, llama: begins anew; what came before is void" in ended.err


async def test_with_fail_a_model_that_breaks_off_fails_the_attempt(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with models("cut=6") as (services, good):
        await start_worker(services=services)
        job = await queue.enqueue(**JOB, on_takeover="fail")
        with pytest.raises(JobFailed):
            await job.result(timeout=20)
        events = [event async for event in job.events()]
        assert good.requests == []
    assert [event.code for event in events if isinstance(event, Error)] == ["connection"]


async def test_a_job_whose_models_all_fail_is_tried_again_where_one_may_pass(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    async with models("server_error=500*2") as (services, good):
        await start_worker(services=services)
        job = await queue.enqueue(**JOB | {"fallbacks": ["groq/gone"], "max_attempts": 2})
        events = [event async for event in job.events()]
        assert good.requests == []
    transcript = check_whole(events, TEXT)
    assert transcript.attempt == 2
    assert [(event.code, event.will_retry) for event in events if isinstance(event, Error)] == [("server_error", True)]


async def test_a_restart_in_a_later_turn_keeps_the_results_of_tools(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    def lucky() -> int:
        """A number."""
        return 7

    # Each provider says the text in both turns, and calls in the first; `openai` breaks off in both.
    async with models("cut=9", tool_calls=(ToolCall("lucky"),)) as (services, _):
        await start_worker(services={**services, "tools": {"lucky": tool(lucky)}})
        job = await queue.enqueue(**JOB, tools=["lucky"])
        events = [event async for event in job.events()]
    transcript = check_whole(events, TEXT + TEXT)
    assert flags(events) == [(False, False), (True, False), (True, False)]
    assert [(made.name, made.result) for made in transcript.tool_results] == [("lucky", 7)]
    assert [call.id for call in transcript.tool_calls] == [transcript.tool_results[0].call_id]
    assert isinstance(events[-1], Done)


async def test_a_worker_that_dies_behind_the_second_model_leaves_all_of_the_text_to_the_next(
    queue: AsyncQueue, start_worker: StartWorker
) -> None:
    source = Text(TEXT)
    async with (
        running(Script(source=source, chunk_size=3, faults=parse_faults("cut=6*1"))) as first,
        running(Script(source=source, chunk_size=3, faults=parse_faults("stall=9"))) as second,
    ):
        settings = LLMSettings(
            providers={
                name: ProviderSettings(base_url=provider.base_url, api_key="sk-test-0123456789abcdef")
                for name, provider in (("vllm", first), ("groq", second))
            }
        )
        async with OpenAICompletions(settings) as client:
            services = {"completions": Retrying(client, backoff=0.001), "llm": settings}
            worker = await start_worker(services=services)
            job = await queue.enqueue(model="vllm/a", fallbacks=["groq/b"], prompt="x", on_takeover="continue")
            events: list[Event] = []
            async for event in job.events():
                events.append(event)
                if sum(isinstance(one, Meta) for one in events) == 2 and event.type == "text_delta":
                    break
            await worker.vanish()
            await start_worker(services=services)
            events = [event async for event in job.events()]
        status = await job.status()
    check_whole(events, TEXT)
    assert flags(events) == [(False, False), (False, True), (False, True)]
    assert [event.attempt for event in events if isinstance(event, Meta)] == [1, 1, 2]
    assert status.usage is not None
    assert status.usage["completion_tokens"] >= len(TEXT) // 4


@needs_node
@pytest.mark.parametrize("on_takeover", ["restart", "continue"])
async def test_deltafan_js_follows_from_one_model_to_the_next(
    queue: AsyncQueue, start_worker: StartWorker, on_takeover: str
) -> None:
    async with models("cut=6") as (services, _), running_relay(queue) as relay:
        job = await queue.enqueue(**JOB, on_takeover=on_takeover)
        async with following(job.id, relay=relay.url) as follower:
            await follower.until("state", lambda state: state == "queued")
            await start_worker(services=services)
            await follower.whole(TEXT)
    metas = [event for event in follower.events if event["type"] == "meta"]
    assert [event["attempt"] for event in metas] == [1, 1]
    assert orjson.dumps(metas[1]["metadata"]) == b'{"chat":7}'
