"""Every fault, as a client meets it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import httpx2
import openai
import orjson
import pytest

from deltafan.devserver.provider import FAULTS, Provider, Script, Text, parse_faults, replay, running
from tests.unit.devserver.provider_client import ASK, Reply, ask, get, sdk

TEXT = "aäbbccddéeff"
SCRIPT = Script(source=Text(TEXT), chunk_size=2)


async def faulty(fault: str, **params: Any) -> tuple[Reply, Provider]:
    """The reply to one request that meets the fault, and the provider with its journal."""
    async with running(SCRIPT) as provider:
        reply = await ask(provider, {"X-Provider-Fault": fault}, **params)
        await provider.until(lambda records: records[0].ended is not None)
        return reply, provider


@pytest.mark.parametrize(
    ("fault", "status", "code", "raised"),
    [
        ("rate_limit", 429, "rate_limit_exceeded", openai.RateLimitError),
        ("quota", 429, "insufficient_quota", openai.RateLimitError),
        ("server_error", 500, None, openai.InternalServerError),
        ("server_error=529", 529, None, openai.InternalServerError),
        ("authentication", 401, "invalid_api_key", openai.AuthenticationError),
        ("permission", 403, "permission_denied", openai.PermissionDeniedError),
        ("model_not_found", 404, "model_not_found", openai.NotFoundError),
        ("context_length", 400, "context_length_exceeded", openai.BadRequestError),
        ("bad_request", 400, None, openai.BadRequestError),
    ],
)
async def test_a_refusal_has_its_status_and_code_and_the_official_client_knows_it(
    fault: str, status: int, code: str | None, raised: type[openai.APIStatusError]
) -> None:
    for stream in (True, False):
        reply, provider = await faulty(fault, stream=stream)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert set(reply.error) == {"message", "type", "param", "code"}
        assert provider.requests[0].outcome == f"fault:{fault.partition('=')[0]}"
    async with running(SCRIPT) as provider, sdk(provider) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(model="m", messages=ASK, extra_headers={"X-Provider-Fault": fault})
    assert caught.value.status_code == status


async def test_a_rate_limit_says_when_to_come_back() -> None:
    assert (await faulty("rate_limit=7"))[0].headers["Retry-After"] == "7"
    reply, _ = await faulty("rate_limit=0.25")
    assert (reply.headers["Retry-After"], reply.headers["retry-after-ms"]) == ("0.25", "250")


async def test_a_cut_ends_the_connection_after_n_chunks_without_the_end_of_the_body() -> None:
    for number in (0, 1, 3):
        reply, provider = await faulty(f"cut={number}")
        assert not reply.complete
        assert len(reply.contents) == number
        assert (provider.requests[0].outcome, provider.requests[0].chunks) == ("fault:cut", number)
        assert provider.requests[0].text == reply.text == TEXT[: number * 2]


async def test_httpx2_and_the_official_client_see_a_cut() -> None:
    headers = {"X-Provider-Fault": "cut=2"}
    async with running(SCRIPT) as provider:
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post(
                    f"{provider.base_url}/chat/completions",
                    json={"model": "m", "messages": ASK, "stream": True},
                    headers=headers,
                )
        async with sdk(provider) as official:
            stream = await official.chat.completions.create(model="m", messages=ASK, stream=True, extra_headers=headers)
            with pytest.raises((openai.APIConnectionError, httpx2.HTTPError)):
                async for _ in stream:
                    pass


async def test_a_close_ends_the_body_in_order_without_a_finish_reason() -> None:
    reply, provider = await faulty("close=3")
    assert reply.complete
    assert (reply.text, reply.finish_reasons) == (TEXT[:6], [])
    assert reply.events[-1] != b"data: [DONE]"
    assert provider.requests[0].outcome == "fault:close"


@pytest.mark.parametrize(("fault", "number"), [("stall", 0), ("stall=2", 2)])
async def test_a_stall_sends_n_chunks_and_then_nothing_until_the_client_goes(fault: str, number: int) -> None:
    async with running(SCRIPT) as provider, aiohttp.ClientSession() as session:
        url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
        async with session.post(url, json=body, headers={"X-Provider-Fault": fault}) as response:
            assert response.status == 200  # the headers came
            await provider.until(lambda records: records[0].outcome == "fault:stall")
            received = b"".join([await response.content.readuntil(b"\n\n") for _ in range(number + bool(number))])
            assert received.count(b'"content":') == number + bool(number)  # and the role chunk
            assert not response.content.at_eof()
            response.close()
        await provider.until(lambda records: records[0].ended is not None)
        record = provider.requests[0]
    assert (record.client_closed, record.chunks, record.outcome) == (True, number, "fault:stall")


async def test_a_malformed_chunk_is_broken_json_and_the_stream_goes_on() -> None:
    reply, provider = await faulty("malformed=2")
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(reply.events[2][6:])
    assert orjson.loads(reply.events[1][6:])["choices"][0]["delta"] == {"content": TEXT[:2]}
    assert orjson.loads(reply.events[3][6:])["choices"][0]["delta"] == {"content": TEXT[4:6]}
    assert reply.events[-1] == b"data: [DONE]"
    assert provider.requests[0].text == TEXT[:2] + TEXT[4:]
    assert provider.requests[0].outcome == "fault:malformed"


async def test_an_error_object_inside_the_stream_ends_it() -> None:
    reply, provider = await faulty("error=2")
    assert reply.status == 200
    assert (reply.text, reply.finish_reasons) == (TEXT[:4], [])
    assert reply.chunks[-1]["error"]["code"] == "server_error"
    assert provider.requests[0].outcome == "fault:error"
    async with running(SCRIPT) as provider, sdk(provider) as client:
        stream = await client.chat.completions.create(
            model="m", messages=ASK, stream=True, extra_headers={"X-Provider-Fault": "error=2"}
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_a_content_filter_ends_the_stream_in_order() -> None:
    for stream in (True, False):
        reply, provider = await faulty("content_filter=2", stream=stream)
        if stream:
            assert (reply.text, reply.finish_reasons) == (TEXT[:4], ["content_filter"])
            assert reply.events[-1] == b"data: [DONE]"
        else:
            assert orjson.loads(reply.body)["choices"][0]["finish_reason"] == "content_filter"
        assert provider.requests[0].outcome == "fault:content_filter"
        assert provider.requests[0].text == TEXT[:4]


@pytest.mark.parametrize(("fault", "sizes"), [("split", {1, 2, 3}), ("split=1", {1})])
async def test_split_bodies_come_in_tiny_pieces_and_join_to_the_same(fault: str, sizes: set[int]) -> None:
    async with running(SCRIPT) as provider, aiohttp.ClientSession() as session:
        url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
        async with session.post(url, json=body, headers={"X-Provider-Fault": fault}) as response:
            pieces = await _http_chunks(response)
        assert {len(piece) for piece in pieces[:-1]} == sizes
        assert Reply(200, {}, b"".join(pieces)).text == TEXT
        async with (
            sdk(provider) as client,
            client.chat.completions.stream(
                model="m", messages=ASK, extra_headers={"X-Provider-Fault": f"{fault},crlf"}
            ) as stream,
        ):
            assert (await stream.get_final_completion()).choices[0].message.content == TEXT


async def test_crlf_ends_every_line() -> None:
    reply, _ = await faulty("crlf")
    assert reply.body.count(b"\r\n") == reply.body.count(b"\n") == 2 * len(reply.events)
    assert reply.text == TEXT


async def test_no_done_leaves_out_the_last_word_only() -> None:
    reply, provider = await faulty("no_done")
    assert reply.finish_reasons == ["stop"]
    assert b"[DONE]" not in reply.body
    assert provider.requests[0].outcome == "finished"


async def test_no_usage_leaves_the_usage_out_and_late_usage_puts_an_empty_chunk_before_it() -> None:
    asked = {"stream_options": {"include_usage": True}}
    without, _ = await faulty("no_usage", **asked)
    assert not any(chunk.get("usage") for chunk in without.chunks)
    late, _ = await faulty("late_usage", **asked)
    assert [(c["choices"], bool(c["usage"])) for c in late.chunks[-2:]] == [([], False), ([], True)]
    whole, _ = await faulty("no_usage", stream=False)
    assert "usage" not in orjson.loads(whole.body)


async def test_slow_headers_come_late() -> None:
    start = asyncio.get_running_loop().time()
    reply, _ = await faulty("slow_headers=0.1")
    assert asyncio.get_running_loop().time() - start >= 0.095
    assert reply.text == TEXT


@pytest.mark.parametrize("fault", ["cut", "close", "malformed", "error"])
async def test_a_whole_answer_meets_the_faults_of_the_stream_too(fault: str) -> None:
    reply, provider = await faulty(fault, stream=False)
    assert reply.status == 200
    assert reply.complete == (fault != "cut")
    if fault == "error":
        assert reply.error["code"] == "server_error"
    else:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(reply.body)
    assert provider.requests[0].outcome == f"fault:{fault}"


async def test_a_limited_fault_lets_the_retry_of_the_same_prompt_through() -> None:
    headers = {"X-Provider-Fault": "cut=2*1"}
    async with running(SCRIPT) as provider:
        first = await ask(provider, headers)
        # a takeover goes on from what it has: the same prompt, with a prefill
        retry = await ask(provider, headers, messages=[*ASK, {"role": "assistant", "content": first.text}])
        other = await ask(provider, headers, messages=[{"role": "user", "content": "Another prompt."}])
        keyed = await ask(provider, {**headers, "X-Provider-Key": "run-2"})
        await get(provider, "/requests", method="DELETE")
        forgotten = await ask(provider, headers)
    assert first.text + retry.text == TEXT
    assert [r.complete for r in (first, retry, other, keyed, forgotten)] == [False, True, False, False, False]


async def test_a_replay_meets_the_faults_of_the_stream() -> None:
    recording = b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    async with running(Script(source=replay(recording))) as provider:
        bodies = {
            fault: (await ask(provider, {"X-Provider-Fault": fault})).body
            for fault in ("cut=1", "close=2", "malformed=2", "error=1", "crlf", "no_done", "split")
        }
        refused = await ask(provider, {"X-Provider-Fault": "no_usage"})
    assert bodies["cut=1"] == b"data: 1\n\n"
    assert bodies["close=2"] == b"data: 1\n\ndata: 2\n\n"
    assert bodies["malformed=2"].startswith(b"data: 1\n\ndata: {")
    assert bodies["error=1"].startswith(b'data: 1\n\ndata: {"error":')
    assert bodies["crlf"] == recording.replace(b"\n", b"\r\n")
    assert bodies["no_done"] == b"data: 1\n\ndata: 2\n\n"
    assert bodies["split"] == recording
    assert refused.status == 400
    assert refused.error["param"] == "X-Provider-Fault"


@pytest.mark.parametrize("fault", [*sorted(FAULTS.keys() - {"stall", "slow_headers"}), "slow_headers=0"])
async def test_every_fault_that_ends_works_as_a_setting_of_the_server(fault: str) -> None:
    async with running(Script(source=Text(TEXT), faults=parse_faults(fault))) as provider:
        await ask(provider)
        await provider.until(lambda records: records[0].ended is not None)
    assert provider.requests[0].faults[0].startswith(fault.partition("=")[0])


async def _http_chunks(response: aiohttp.ClientResponse) -> list[bytes]:
    """The body as the chunks of its transfer encoding, which are the server's writes."""
    chunks, current = [], bytearray()
    async for data, ends in response.content.iter_chunks():
        current += data
        if ends:
            chunks.append(bytes(current))
            current.clear()
    return [chunk for chunk in chunks if chunk]
