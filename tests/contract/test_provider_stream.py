"""What the provider answers when nothing goes wrong, by raw HTTP and through the official client."""

from __future__ import annotations

import asyncio

import pytest

from deltafan.devserver.provider import Echo, Script, Text, ToolCall, Written, replay, running
from deltafan.devserver.provider.text import written_text
from tests.unit.devserver.provider_client import ASK, ask, sdk

TEXT = "Grüße aus Köln, 👋 and so on."
CALLS = (ToolCall("get_weather", '{"city":"Köln"}'), ToolCall("get_time"))


async def test_a_stream_has_openais_shape() -> None:
    async with running(Script(source=Text("abcdef"), chunk_size=3)) as provider:
        reply = await ask(provider, stream_options={"include_usage": True})
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.events[-1] == b"data: [DONE]"
    first, a, b, last, usage = reply.chunks
    assert {chunk["id"] for chunk in reply.chunks} == {reply.headers["x-request-id"]}
    assert {(c["object"], c["model"], c["usage"] is None) for c in reply.chunks[:-1]} == {
        ("chat.completion.chunk", "m", True)
    }
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [a["choices"][0]["delta"], b["choices"][0]["delta"]] == [{"content": "abc"}, {"content": "def"}]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (2, 2)


async def test_usage_comes_only_when_it_is_asked_for_and_the_script_has_it() -> None:
    async with running(Script()) as provider:
        assert not any("usage" in chunk for chunk in (await ask(provider)).chunks)
        assert b'"usage"' in (await ask(provider, stream=False)).body
    async with running(Script(usage=False)) as provider:
        assert b'"usage"' not in (await ask(provider, stream_options={"include_usage": True})).body
        assert b'"usage"' not in (await ask(provider, stream=False)).body


async def test_the_official_client_reads_streams_and_whole_answers_alike() -> None:
    script = Script(source=Text(TEXT), reasoning="Let me think — ja.", tool_calls=CALLS)
    async with running(script) as provider, sdk(provider) as client:
        async with client.chat.completions.stream(
            model="m", messages=ASK, stream_options={"include_usage": True}
        ) as stream:
            streamed = await stream.get_final_completion()
        whole = await client.chat.completions.create(model="m", messages=ASK)
    for completion in (streamed, whole):
        message = completion.choices[0].message
        assert message.content == TEXT
        assert [(c.function.name, c.function.arguments) for c in message.tool_calls or ()] == [
            ("get_weather", '{"city":"Köln"}'),
            ("get_time", "{}"),
        ]
        assert completion.choices[0].finish_reason == "tool_calls"
        assert completion.usage is not None
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert streamed.usage == whole.usage
    assert whole.choices[0].message.model_dump()["reasoning_content"] == "Let me think — ja."


async def test_a_tool_call_streams_id_and_name_first_and_then_its_arguments() -> None:
    async with running(Script(tool_calls=CALLS, chunk_size=5)) as provider:
        reply = await ask(provider)
    deltas = [c["choices"][0]["delta"] for c in reply.chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert deltas[0]["content"] is None
    assert calls[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["type"] == "function"
    assert calls[1] == {"index": 0, "function": {"arguments": '{"cit'}}
    assert "".join(c["function"]["arguments"] for c in calls if c["index"] == 0) == '{"city":"Köln"}'
    assert reply.finish_reasons == ["tool_calls"]
    assert reply.text == ""


async def test_a_tools_result_is_answered_with_text() -> None:
    result = [*ASK, {"role": "assistant", "content": None}, {"role": "tool", "tool_call_id": "1", "content": "3°"}]
    async with running(Script(tool_calls=CALLS)) as provider:
        reply = await ask(provider, messages=result)
    assert reply.finish_reasons == ["stop"]
    assert reply.text == written_text("Say something.")


async def test_a_refusal_takes_the_place_of_the_text() -> None:
    async with running(Script(source=Text("yes"), refusal="I cannot.")) as provider, sdk(provider) as client:
        reply = await ask(provider)
        whole = await client.chat.completions.create(model="m", messages=ASK)
    refusal = "".join(c["choices"][0]["delta"].get("refusal") or "" for c in reply.chunks)
    assert (refusal, reply.text) == ("I cannot.", "")
    assert (whole.choices[0].message.refusal, whole.choices[0].message.content) == ("I cannot.", None)


async def test_reasoning_comes_before_the_text_and_counts_as_reasoning_tokens() -> None:
    async with running(Script(source=Text("b"), reasoning="aaaa", chunk_size=2)) as provider:
        reply = await ask(provider, stream_options={"include_usage": True})
    deltas = [c["choices"][0]["delta"] for c in reply.chunks[1:-2]]
    assert deltas == [{"reasoning_content": "aa"}, {"reasoning_content": "aa"}, {"content": "b"}]
    assert reply.chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


async def test_echo_gives_back_the_last_user_messages_text_parts() -> None:
    parts = [{"type": "text", "text": "Hällo "}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "🌍"}]
    messages = [*ASK, {"role": "assistant", "content": "?"}, {"role": "user", "content": parts}]
    async with running(Script(source=Echo())) as provider:
        assert (await ask(provider, messages=messages)).text == "Hällo 🌍"


async def test_the_written_text_is_the_default() -> None:
    async with running(Script(source=Written())) as provider:
        assert (await ask(provider)).text == written_text("Say something.")


@pytest.mark.parametrize(
    ("prefill", "rest"), [("Hello", " world."), ("Hello world.", ""), ("Bye", "Hello world."), ("", "Hello world.")]
)
async def test_a_prefill_is_gone_on_from(prefill: str, rest: str) -> None:
    async with running(Script(source=Text("Hello world."), reasoning="hm")) as provider:
        reply = await ask(provider, messages=[*ASK, {"role": "assistant", "content": prefill}])
    assert reply.text == rest
    assert reply.finish_reasons == ["stop"]
    assert (b"reasoning_content" in reply.body) == (prefill == "")


async def test_the_written_text_goes_on_from_a_prefill_too() -> None:
    whole = written_text("Say something.")
    async with running(Script()) as provider:
        reply = await ask(provider, messages=[*ASK, {"role": "assistant", "content": whole[:100]}])
    assert whole[:100] + reply.text == whole


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_token_limit_cuts_the_text(name: str) -> None:
    async with running(Script(source=Text("abcdef"), chunk_size=1)) as provider:
        cut = await ask(provider, **{name: 4})
        enough = await ask(provider, **{name: 6})
    assert (cut.text, cut.finish_reasons) == ("abcd", ["length"])
    assert (enough.text, enough.finish_reasons) == ("abcdef", ["stop"])


@pytest.mark.parametrize("stop", ["d", ["zz", "ef", "d"]])
async def test_a_stop_sequence_ends_the_text_before_it(stop: str | list[str]) -> None:
    async with running(Script(source=Text("abcdef"), chunk_size=2)) as provider:
        reply = await ask(provider, stop=stop)
    assert (reply.text, reply.finish_reasons) == ("abc", ["stop"])


async def test_several_choices_come_interleaved() -> None:
    async with running(Script(chunk_size=200)) as provider, sdk(provider) as client:
        reply = await ask(provider, n=3)
        whole = await client.chat.completions.create(model="m", messages=ASK, n=3)
    order = [chunk["choices"][0]["index"] for chunk in reply.chunks]
    assert order[:9] == [0, 1, 2] * 3
    for index in range(3):
        pieces = [
            c["choices"][0]["delta"].get("content", "") for c in reply.chunks if c["choices"][0]["index"] == index
        ]
        assert "".join(pieces) == whole.choices[index].message.content == written_text("Say something.", index)
    assert reply.finish_reasons == ["stop"] * 3
    assert len(whole.choices) == 3


async def test_a_finish_reason_can_be_scripted() -> None:
    async with running(Script(source=Text("a"), finish_reason="eos")) as provider:
        assert (await ask(provider)).finish_reasons == ["eos"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_a_replay_is_byte_for_byte(end: str) -> None:
    recording = f': hello{end}{end}data: {{"choices":[{{"delta":{{"content":"ä"}}}}]}}{end}{end}data: [DONE]{end}{end}'
    async with running(Script(source=replay(recording.encode()))) as provider:
        reply = await ask(provider)
        await provider.until(lambda records: records[0].ended is not None)
        record = provider.requests[0]
    assert reply.body == recording.encode()
    assert (record.outcome, record.chunks, record.text) == ("finished", 3, "ä")


async def test_a_replay_with_a_rate_is_the_same_bytes() -> None:
    recording = b"data: 1\n\ndata: 2\r\n\r\ndata: 3"
    async with running(Script(source=replay(recording), rate=500)) as provider:
        assert (await ask(provider)).body == recording


async def test_a_replay_only_streams() -> None:
    async with running(Script(source=replay(b"data: 1\n\n"))) as provider:
        reply = await ask(provider, stream=False)
    assert reply.status == 400
    assert "replay only streams" in reply.error["message"]


async def test_a_long_text_arrives_whole_however_it_is_batched() -> None:
    text = "0123456789" * 20_000
    async with running(Script(source=Text(text), chunk_size=10)) as provider:
        reply = await ask(provider)
        await provider.until(lambda records: records[0].ended is not None)
    assert reply.contents == ["0123456789"] * 20_000
    assert provider.requests[0].chunks == 20_000


async def test_the_rate_never_lets_a_chunk_come_early() -> None:
    async with running(Script(source=Text("abcdef"), chunk_size=1, rate=50, first_token_delay=0.05)) as provider:
        start = asyncio.get_running_loop().time()
        await ask(provider)
        took = asyncio.get_running_loop().time() - start
        whole_start = asyncio.get_running_loop().time()
        await ask(provider, stream=False)
        whole_took = asyncio.get_running_loop().time() - whole_start
    assert took >= 0.15 - 0.005  # 0.05 s, then the sixth chunk 5/50 s after the first; clocks have a resolution
    assert whole_took >= 0.15 - 0.005
