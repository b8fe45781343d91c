"""The doors of the provider: keys, steering, bad input, the journal, clients that leave."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import orjson
import pytest

from deltafan.devserver.provider import Echo, Script, Text, running, serve
from deltafan.errors import ConfigurationError
from tests.unit.devserver.provider_client import ASK, ask, get, sdk


async def test_headers_win_over_metadata_which_wins_over_the_script() -> None:
    metadata = {"text": "from metadata", "finish_reason": "eos", "customer": "4711"}
    async with running(Script(source=Text("from script"), reasoning="kept")) as provider:
        plain = await ask(provider)
        steered = await ask(provider, metadata=metadata)
        both = await ask(provider, {"X-Provider-Text": "from%20header"}, metadata=metadata)
    assert [r.text for r in (plain, steered, both)] == ["from script", "from metadata", "from header"]
    assert both.finish_reasons == ["eos"]
    assert b"reasoning_content" in both.body


async def test_a_header_takes_the_place_of_the_other_layers_source() -> None:
    async with running(Script(source=Echo())) as provider:
        assert (await ask(provider, {"X-Provider-Text": "a"}, metadata={"echo": "on"})).text == "a"
        assert (await ask(provider, {"X-Provider-Echo": "on"}, metadata={"text": "a"})).text == "Say something."


async def test_text_in_a_header_holds_any_character() -> None:
    async with running(Script()) as provider:
        reply = await ask(provider, {"X-Provider-Text": "100%25%0A%0D%C3%A4%F0%9F%8C%8A"})
    assert reply.text == "100%\n\rä🌊"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("X-Provider-Rate", "fast", "must be a number, 0 or more"),
        ("X-Provider-Rate", "-1", "must be a number, 0 or more"),
        ("X-Provider-Chunk-Size", "0", "must be a whole number from 1 to"),
        ("X-Provider-First-Token-Delay", "99999", "must be a number of seconds from 0 to"),
        ("X-Provider-Fault", "explode", "unknown fault 'explode'; one of rate_limit, "),
        ("X-Provider-Tool-Calls", "{", "is not JSON"),
        ("X-Provider-Text", "100%", "a % of its own is written %25"),
        ("X-Provider-Text", "%FF", "must be percent-encoded UTF-8"),
        ("X-Provider-Echo", "maybe", "must be on or off"),
        ("X-Provider-Finish-Reason", "x" * 65, "must have 1 to 64 characters"),
        ("X-Provider-Replay", "/etc/passwd", "is not known; one of X-Provider-Text, "),
        ("X-Provider-Colour", "blue", "is not known; one of X-Provider-Text, "),
    ],
)
async def test_a_wrong_header_is_answered_400_with_its_name_and_rule(name: str, value: str, rule: str) -> None:
    async with running(Script()) as provider:
        reply = await ask(provider, {name: value})
    assert reply.status == 400
    assert reply.error["param"] == name
    assert reply.error["message"].startswith(f"{name}: ")
    assert rule in reply.error["message"]
    assert provider.requests[0].outcome == "rejected"


async def test_a_header_given_twice_or_with_its_rival_is_refused() -> None:
    async with running(Script()) as provider:
        twice = await ask(provider, [("X-Provider-Rate", "1"), ("X-Provider-Rate", "2")])
        rivals = await ask(provider, {"X-Provider-Text": "a", "X-Provider-Echo": "on"})
    assert twice.error["message"] == "X-Provider-Rate: is given twice"
    assert rivals.error["message"] == "X-Provider-Echo: cannot be combined with X-Provider-Text"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"rate": 20}}, "metadata.rate"),
        ({"metadata": {"fault": "explode"}}, "metadata.fault"),
    ],
)
async def test_a_wrong_parameter_is_answered_400_with_its_name(params: dict[str, object], param: str) -> None:
    async with running(Script()) as provider:
        reply = await ask(provider, **params)
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)
    assert reply.error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"\xff", b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}']
)
async def test_a_body_that_is_no_json_object_is_answered_400(body: bytes) -> None:
    async with (
        running(Script()) as provider,
        aiohttp.ClientSession() as session,
        session.post(f"{provider.base_url}/chat/completions", data=body) as response,
    ):
        assert response.status == 400
        assert "JSON" in (await response.json())["error"]["message"]


async def test_unknown_paths_and_methods_have_openais_error_shape() -> None:
    async with running(Script()) as provider:
        missing = await get(provider, "/v1/audio")
        wrong = await get(provider, "/v1/chat/completions")
    assert (missing.status, missing.error["type"]) == (404, "invalid_request_error")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")


async def test_the_paths_work_with_and_without_v1() -> None:
    async with running(Script(source=Text("a"))) as provider, sdk(provider) as client:
        assert provider.base_url.endswith("/v1")
        assert [model.id async for model in client.models.list()] == ["scripted"]
        assert (await get(provider, "/models")).body == (await get(provider, "/v1/models")).body
        assert orjson.loads((await get(provider, "/healthz")).body) == {"status": "ok"}
        unprefixed = replace(provider, base_url=provider.base_url.removesuffix("/v1"))
        assert (await ask(unprefixed)).text == "a"


async def test_any_key_will_do_unless_one_is_required() -> None:
    async with running(Script()) as provider:
        assert (await ask(provider)).status == 200
        assert (await ask(provider, {"Authorization": "Bearer whatever"})).status == 200
    async with running(Script(require_key="sk-right")) as provider:
        for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "sk-right"}):
            reply = await ask(provider, headers)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert (await get(provider, "/requests")).status == 401
        assert (await get(provider, "/healthz")).status == 200
        assert (await ask(provider, {"Authorization": "Bearer sk-right"})).status == 200


async def test_the_journal_tells_what_was_asked_and_sent() -> None:
    async with running(Script(source=Text("abc"), chunk_size=1)) as provider, sdk(provider) as client:
        await client.chat.completions.create(
            model="m", messages=ASK, temperature=0.5, extra_body={"api_key": "sk-test-secret"}
        )
        streamed = await ask(provider, {"X-Provider-Key": "mine"})
        await provider.until(lambda records: all(record.ended for record in records))
        raw = await get(provider, "/requests")
        first, second = orjson.loads(raw.body)
        cleared = await get(provider, "/requests", method="DELETE")
        assert orjson.loads(cleared.body) == {"cleared": 2}
        assert orjson.loads((await get(provider, "/requests")).body) == []
    assert b"sk-test-secret" not in raw.body
    assert (first["model"], first["stream"], first["params"]["temperature"]) == ("m", False, 0.5)
    assert "messages" not in first["params"]
    assert second["id"] == streamed.headers["x-request-id"]
    assert (second["outcome"], second["status"], second["chunks"], second["text"]) == ("finished", 200, 3, "abc")
    assert second["started"] <= second["ended"]
    assert first["messages_digest"] == second["messages_digest"]
    assert second["key"] == f"{first['key']}:mine"


async def test_a_client_that_leaves_stops_the_stream_at_once_and_is_recorded() -> None:
    async with running(Script(source=Text("a" * 100_000), rate=100)) as provider, aiohttp.ClientSession() as session:
        url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
        async with session.post(url, json=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        await provider.until(lambda records: records[0].ended is not None)
        record = provider.requests[0]
    assert (record.outcome, record.client_closed) == ("client_closed", True)
    assert 0 < record.chunks < 25_000


@pytest.mark.parametrize("steps", [{"first_token_delay": 60}, {"rate": 0.01}])
async def test_a_client_that_leaves_in_a_silence_is_noticed_then(steps: dict[str, float]) -> None:
    async with running(Script(**steps)) as provider, aiohttp.ClientSession() as session:  # type: ignore[arg-type]
        url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
        async with session.post(url, json=body) as response:
            response.close()
        await provider.until(lambda records: records[0].ended is not None)
    assert provider.requests[0].outcome == "client_closed"


async def test_a_client_that_does_not_read_is_not_buffered_for() -> None:
    text = Text("a" * 300_000)
    async with running(Script(source=text, chunk_size=1)) as provider, aiohttp.ClientSession() as session:
        url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
        async with session.post(url, json=body) as response:
            await provider.until(lambda records: records[0].chunks > 0)
            for _ in range(1000):  # turns of the loop in which it could send on
                await asyncio.sleep(0)
            assert provider.requests[0].chunks < 150_000
            response.close()
        await provider.until(lambda records: records[0].ended is not None)
    assert provider.requests[0].outcome == "client_closed"


async def test_answers_that_still_run_end_with_the_server() -> None:
    async with aiohttp.ClientSession() as session:
        async with running(Script(rate=0.01)) as provider:
            url, body = f"{provider.base_url}/chat/completions", {"model": "m", "messages": ASK, "stream": True}
            response = await session.post(url, json=body)
        assert provider.requests[0].outcome == "stopped"
        assert not provider.requests[0].client_closed
        response.close()


async def test_serve_says_where_and_runs_until_it_is_cancelled() -> None:
    where: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(Script(), "127.0.0.1", 0, ready=where.set_result))
    base_url = await where
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/models") as response:
        assert response.status == 200
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_an_address_that_cannot_be_bound_is_named() -> None:
    async with running(Script()) as provider:
        port = int(provider.base_url.removesuffix("/v1").rpartition(":")[2])
        for host, bad_port in (("127.0.0.1", port), ("256.0.0.1", 0), ("127.0.0.1", 70_000)):
            with pytest.raises(ConfigurationError, match=f"cannot listen on {host}:{bad_port}"):
                async with running(Script(), host, bad_port):
                    pass
