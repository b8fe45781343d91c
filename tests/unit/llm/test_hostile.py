"""A provider that sends more, or deeper, than any does: an error in a moment, in little memory."""

from __future__ import annotations

import pytest
from aiohttp import web

from deltafan.errors import CompletionError
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.decode import ChunkDecoder, parse_json
from deltafan.llm.failures import MAX_MESSAGE, from_body
from deltafan.llm.request import Request
from tests.unit.llm.server import KEY, serving, settings


@pytest.mark.parametrize("text", ["<", "<script", "<style>x", "eyJa-", "eyJ.", "Bearer ", "sk-", "://a", "model "])
def test_megabytes_of_what_looks_like_markup_or_a_key_are_read_in_a_moment(text: str) -> None:
    """The time limit of the tests decides: before, such a text took minutes, by the square of its length."""
    for body in (text * 300_000, {"error": {"message": text * 300_000}}):
        assert len(from_body(body, status=400).message) <= MAX_MESSAGE


def test_a_page_of_markup_shows_its_words() -> None:
    page = f"<!doctype html><style>{'a{}' * 9999}</style><title>502 Bad <b>Gateway</b></title><script>{'x' * 9999}"
    assert from_body(page, status=502).message == "502 Bad Gateway"


async def test_an_error_that_does_not_end_is_read_in_its_beginning_only() -> None:
    """Without a bound it would be read until a time limit, and be kept in memory."""

    async def endless(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"overloaded " * 1000)

    async with serving(endless) as url, OpenAICompletions(settings(url)) as completions:
        with pytest.raises(CompletionError) as caught:
            async for _ in completions.stream(Request(model="m", messages=[])):
                pass
    assert (caught.value.code, caught.value.status) == ("server_error", 500)
    assert caught.value.message.startswith("overloaded overloaded")
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    "choice",
    [
        b'{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":%b1%b}}]}}'
        % (b"[" * 400, b"]" * 400),
        b'{"index":0,"delta":{"content":"\\ud800","tool_calls":[{"index":0,"function":{"name":"f","arguments":[%b]}}]}}'
        % (b"9" * 400),
        b'{"index":0,"delta":{"content":"\\ud800","tool_calls":[{"index":%b}]}}' % (b"9" * 400),
        b'{"index":%b,"delta":{"content":"\\ud800"}}' % (b"9" * 400),
        b'{"index":2147483648,"delta":{"content":"x"}}',
    ],
    ids=["deep arguments", "a huge number", "a huge call", "a huge choice", "a choice beyond 32 bits"],
)
def test_what_the_wire_could_not_carry_is_malformed(choice: bytes) -> None:
    with pytest.raises(CompletionError) as caught:
        ChunkDecoder().decode(parse_json(b'{"choices":[' + choice + b"]}"))
    assert caught.value.code == "malformed_stream"
