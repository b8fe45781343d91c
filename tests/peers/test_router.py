"""A router made of litellm's own arguments serves, falls back and fails as litellm's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import litellm
import pytest
import pytest_asyncio

import deltafan as ours
from deltafan.devserver.provider import Provider, Script, Text, parse_fault, running
from tests.peers.kit import amounts_to, answered, differences, gather, in_a_thread
from tests.unit.client.conftest import KEY

ASKED: dict[str, Any] = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}
LIBRARIES = pytest.mark.parametrize("library", [litellm, ours], ids=["litellm", "ours"])


@pytest_asyncio.fixture
async def good() -> AsyncIterator[Provider]:
    async with running(Script(source=Text("Hello."))) as provider:
        yield provider


@pytest_asyncio.fixture
async def bad(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    async with running(Script(faults=(parse_fault(request.param),))) as provider:
        yield provider


def listed(name: str, provider: Provider, model: str = "openai/gpt-4o-mini") -> dict[str, Any]:
    params = {"model": model, "api_key": KEY, "api_base": provider.base_url}
    return {"model_name": name, "litellm_params": params}


async def every_way(router: Any) -> list[dict[str, Any]]:
    """The answer, whole and streamed, with `await` and without."""
    return [
        answered(await router.acompletion(**ASKED)),
        amounts_to(await gather(await router.acompletion(**ASKED, stream=True))),
        answered(await in_a_thread(router.completion, **ASKED)),
        amounts_to(await in_a_thread(router.completion, **ASKED, stream=True)),
    ]


@pytest.mark.parametrize(
    ("bad", "fallbacks"),
    [
        ("server_error=503", "fallbacks"),
        ("context_length", "context_window_fallbacks"),
        ("authentication", "fallbacks"),
    ],
    indirect=["bad"],
)
async def test_another_model_answers_the_same(bad: Provider, good: Provider, fallbacks: str) -> None:
    models = [listed("first", bad), listed("second", good, "openai/gpt-4o")]
    theirs, our = [
        await every_way(library.Router(model_list=models, num_retries=0, **{fallbacks: [{"first": ["second"]}]}))
        for library in (litellm, ours)
    ]
    assert [differences(one, other) for one, other in zip(theirs, our, strict=True)] == [{}] * 4


@LIBRARIES
async def test_two_deployments_share_a_name(library: Any, good: Provider) -> None:
    async with running(Script(source=Text("Hello."))) as other:
        router = library.Router(model_list=[listed("first", good), listed("first", other)])
        for _ in range(40):
            await router.acompletion(**ASKED)
        assert len(good.requests) + len(other.requests) == 40
        assert good.requests, "never once in 40 is 1 in 10^12"
        assert other.requests


@pytest.mark.parametrize("bad", ["server_error=503"], indirect=True)
async def test_who_has_no_one_else_fails_by_the_same_name(bad: Provider) -> None:
    for library in (litellm, ours):
        router = library.Router(model_list=[listed("first", bad)], num_retries=0)
        with pytest.raises(library.ServiceUnavailableError) as caught:
            await router.acompletion(**ASKED)
        error: Any = caught.value
        assert error.status_code == 503
