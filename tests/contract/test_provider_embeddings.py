"""The provider's embeddings: to the official client they are OpenAI's, and they follow from the text alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deltafan.devserver.provider import Script, running
from tests.unit.devserver.provider_client import ask, sdk


async def test_the_same_text_has_the_same_vector_and_others_have_others() -> None:
    async with running(Script()) as provider, sdk(provider) as client:
        answer = await client.embeddings.create(model="m", input=["a b", "c", "a b"])
        again = await client.embeddings.create(model="m", input="a b")
        short = await client.embeddings.create(model="m", input=[[1, 2, 3]], dimensions=8)
    first, other, same = (item.embedding for item in answer.data)
    assert first == same == again.data[0].embedding != other
    assert len(first) == 1536
    assert math.hypot(*first) == pytest.approx(1, abs=1e-3)
    assert len(short.data[0].embedding) == 8
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, short.usage.prompt_tokens) == (5, 3)


async def test_base64_and_numbers_are_the_same_vector() -> None:
    async with running(Script()) as provider, sdk(provider) as client:
        numbers = await client.embeddings.create(model="m", input="a", encoding_format="float")
        packed = await client.embeddings.create(model="m", input="a")  # the client asks for base64
    assert packed.data[0].embedding == pytest.approx(numbers.data[0].embedding, rel=1e-6)
    assert provider.requests[1].params["encoding_format"] == "base64"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a " * 300_001}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": ""}, "model"),
    ],
)
async def test_a_wrong_parameter_is_named(params: dict[str, Any], param: str) -> None:
    async with running(Script()) as provider:
        reply = await ask(provider, path="/embeddings", **({"input": "a"} | params))
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("fault", ["cut", "close", "malformed"])
async def test_a_fault_of_the_stream_hits_the_body(fault: str) -> None:
    async with running(Script()) as provider:
        whole = await ask(provider, path="/embeddings", input="a")
        reply = await ask(provider, {"X-Provider-Fault": fault}, path="/embeddings", input="a")
        await provider.until(lambda records: records[1].ended is not None)
    assert reply.body == whole.body[: len(whole.body) // 2]
    assert reply.complete is (fault != "cut")
    assert provider.requests[1].outcome == f"fault:{fault}"
