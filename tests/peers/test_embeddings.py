"""Vectors through litellm and through us are the same, to the last bit."""

from __future__ import annotations

from typing import Any

import litellm
import pytest

import deltafan as ours
from deltafan.devserver.provider import Script, parse_fault, running
from tests.peers.kit import cost_of, differences, flat, in_a_thread
from tests.unit.client.conftest import KEY

MODEL = "openai/text-embedding-3-small"
INPUTS: dict[str, dict[str, Any]] = {
    "one text": {"input": "the sky"},
    "several texts": {"input": ["the sky", "the sea", "the sky"]},
    "fewer dimensions": {"input": ["the sky"], "dimensions": 8},
    "as base64": {"input": ["the sky"], "dimensions": 8, "encoding_format": "base64"},
    "as numbers": {"input": ["the sky"], "encoding_format": "float", "user": "ann"},
}


def said(response: Any) -> dict[str, Any]:
    """All fields; read by key, as litellm's vectors are plain dicts."""
    usage = response["usage"]
    return flat(
        {
            "model": response["model"],
            "object": response["object"],
            "usage": {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["total_tokens"]},
            "data": [{name: one[name] for name in ("object", "index", "embedding")} for one in response["data"]],
        }
    )


@pytest.mark.parametrize("sync", [False, True], ids=["await", "plain"])
@pytest.mark.parametrize("arguments", list(INPUTS.values()), ids=list(INPUTS))
async def test_vectors_are_litellms(arguments: dict[str, Any], sync: bool) -> None:
    answers: list[Any] = []
    async with running(Script()) as provider:
        for library in (litellm, ours):
            more = {"model": MODEL, "api_key": KEY, "api_base": provider.base_url, **arguments}
            answer = in_a_thread(library.embedding, **more) if sync else library.aembedding(**more)
            answers.append(await answer)
    assert differences(*map(said, answers)) == {}
    assert cost_of(answers[1]) == pytest.approx(cost_of(answers[0]))


async def test_a_failure_has_litellms_name() -> None:
    async with running(Script(faults=(parse_fault("authentication"),))) as provider:
        for library in (litellm, ours):
            with pytest.raises(library.AuthenticationError) as caught:
                await library.aembedding(MODEL, input=["Hi"], api_key=KEY, api_base=provider.base_url)
            error: Any = caught.value
            assert (error.status_code, error.llm_provider) == (401, "openai")
