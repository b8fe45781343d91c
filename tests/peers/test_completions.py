"""A completion through litellm and through us is the same: what is asked, what is answered, chunk by chunk."""

from __future__ import annotations

from typing import Any

import litellm
import pytest

import deltafan as ours
from deltafan.devserver.provider import Provider, running
from tests.peers.calls import CALLS, MODEL, QUESTION, Call
from tests.peers.kit import amounts_to, answered, asked, cost_of, differences, gather, in_a_thread
from tests.unit.client.conftest import KEY

pytestmark = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])


def arguments_of(call: Call, provider: Provider, library: Any, **more: Any) -> dict[str, Any]:
    arguments = {
        "model": MODEL,
        "messages": QUESTION,
        "api_key": KEY,
        "api_base": provider.base_url,
        **call.arguments,
        **more,
    }
    # litellm wants its gateway's libraries for tools; this is its own way to do without.
    return arguments | {"_skip_mcp_handler": True} if library is litellm else arguments


@pytest.mark.parametrize("sync", [False, True], ids=["await", "plain"])
async def test_a_whole_answer_is_litellms_field_by_field(call: Call, sync: bool) -> None:
    answers: list[Any] = []
    async with running(call.script) as provider:
        for library in (litellm, ours):
            arguments = arguments_of(call, provider, library)
            if sync:
                answers.append(await in_a_thread(library.completion, **arguments))
            else:
                answers.append(await library.acompletion(**arguments))
        theirs, our = provider.requests
    assert differences(*(answered(answer, call.counted) for answer in answers)) == call.differs
    assert differences(asked(theirs), asked(our)) == call.asked_differs
    if call.counted and cost_of(answers[0]):
        assert cost_of(answers[1]) == pytest.approx(cost_of(answers[0]))


@pytest.mark.parametrize("sync", [False, True], ids=["await", "plain"])
async def test_a_stream_is_litellms_field_by_field(call: Call, sync: bool) -> None:
    streams: list[list[Any]] = []
    expected = {**call.differs, **call.streamed_differs}
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    async with running(call.script) as provider:
        for library in (litellm, ours):
            arguments = arguments_of(call, provider, library, **options)
            if sync:
                streams.append(await in_a_thread(library.completion, **arguments))
            else:
                streams.append(await gather(await library.acompletion(**arguments)))
        theirs, our = provider.requests
    assert differences(*(amounts_to(chunks, call.counted) for chunks in streams)) == expected
    assert differences(asked(theirs), asked(our)) == call.asked_differs
    if call.counted and cost_of(streams[0][-1]):
        assert cost_of(streams[1][-1]) == pytest.approx(cost_of(streams[0][-1]))
