"""A key is in nothing that a failing call leaves behind."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
from pydantic import SecretStr

from deltafan.errors import CompletionError
from deltafan.llm import LLMSettings, ProviderSettings, Request, Retrying
from deltafan.llm.client import OpenAICompletions
from deltafan.llm.context import ContextCheck
from tests.unit.llm.server import Handler, answering, failing, serving

KEY = "zq7-Secret-Key-That-Looks-Like-None-0123456789"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "handler",
    [
        failing(401, {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}),
        failing(500, f"<html>Authorization: Bearer {KEY}</html>"),
        failing(400, {"detail": [{"loc": ["body", KEY], "msg": KEY}]}),
        answering({"error": {"message": f"key {KEY} is out of credit", "code": KEY}}),
        answering(raw=b"data: " + KEY.encode() + b"\n\n"),
    ],
    ids=["401", "500", "400", "event", "garbage"],
)
async def test_no_repr_log_error_or_event_has_the_key(
    handler: Handler, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []
    async with serving(handler) as url:
        settings = LLMSettings(providers={"openai": ProviderSettings(base_url=url, api_key=SecretStr(KEY))})
        async with OpenAICompletions(settings) as client:
            completions = Retrying(ContextCheck(client, settings), attempts=2, backoff=0.001)
            seen += [settings, client, completions, vars(client), vars(completions)]
            with pytest.raises(CompletionError) as caught:
                seen += [event async for event in completions.stream(Request("gpt-5", MESSAGES))]
    error = caught.value
    seen += [error, error.args, vars(error), error.__cause__]
    shown = [repr(thing) + str(thing) for thing in seen]
    shown.append("".join(traceback.format_exception(error)))
    shown += [record.getMessage() + str(record.args) for record in caplog.records]
    shown += capfd.readouterr()
    assert len(shown) > 10
    assert [text for text in shown if KEY in text] == []


@pytest.mark.parametrize("key", [f"{KEY}\nX-Evil: 1", f"{KEY}\u2603"])
async def test_a_key_that_cannot_be_sent_is_not_shown_either(key: str) -> None:
    async with serving(answering()) as url:
        settings = LLMSettings(providers={"openai": ProviderSettings(base_url=url, api_key=SecretStr(key))})
        async with OpenAICompletions(settings) as client:
            with pytest.raises(CompletionError) as caught:
                _ = [event async for event in client.stream(Request("gpt-5", MESSAGES))]
    assert KEY not in "".join(traceback.format_exception(caught.value))
