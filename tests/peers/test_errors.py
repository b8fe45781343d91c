"""What fails through litellm fails through us: with its names, its statuses, and what its `except` clauses read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import litellm
import pytest
from aiohttp import web

import deltafan as ours
from deltafan.devserver.provider import Script, Text, parse_fault, running
from tests.peers.kit import gather
from tests.unit.client.conftest import KEY

NAMES = (
    "APIConnectionError",
    "APIError",
    "AuthenticationError",
    "BadRequestError",
    "ContentPolicyViolationError",
    "ContextWindowExceededError",
    "InternalServerError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServiceUnavailableError",
    "Timeout",
)
"""Of exceptions that both have."""


@dataclass(frozen=True)
class Failure:
    """One way to fail, and the names by which an `except` clause catches it."""

    fault: str
    theirs: str
    """litellm's class of it."""
    ours: str = ""
    """Ours, where we name it more exactly; litellm's name, or the base class of both, catches it, too."""
    caught_as: str = ""
    """What catches both, if not litellm's class."""


FAILURES = (
    Failure("authentication", "AuthenticationError"),
    Failure("model_not_found", "NotFoundError"),
    Failure("rate_limit=0", "RateLimitError"),
    Failure("quota", "RateLimitError"),
    Failure("bad_request", "BadRequestError"),
    Failure("context_length", "ContextWindowExceededError"),
    Failure("server_error=503", "ServiceUnavailableError"),
    Failure("stall", "Timeout"),
    # litellm has a name for it, and does not use it for OpenAI.
    Failure("permission", "APIError", "PermissionDeniedError"),
    # Every 5xx is one thing to us: the server's, and worth another try.
    Failure("server_error=500", "InternalServerError", "ServiceUnavailableError"),
    Failure("server_error=502", "BadGatewayError", "ServiceUnavailableError", "APIError"),
)


def failure_of(error: BaseException) -> dict[str, Any]:
    """What a handler may read. Messages are the provider's words: litellm puts names of its own before them."""
    read: Any = error
    return {"status_code": read.status_code, "llm_provider": read.llm_provider}


async def fail(library: Any, url: str, stream: bool, **more: Any) -> BaseException:
    arguments = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "api_key": KEY}
    retries = {"num_retries": 0, "max_retries": 0}
    try:
        answer = await library.acompletion(**arguments, api_base=url, stream=stream, **retries, **more)
        if stream:
            await gather(answer)
    except Exception as error:
        return error
    raise AssertionError(f"{library.__name__} did not fail")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.fault)
async def test_a_failure_is_caught_by_litellms_name(failure: Failure, stream: bool) -> None:
    more = {"timeout": 0.5} if failure.fault == "stall" else {}
    async with running(Script(faults=(parse_fault(failure.fault),))) as provider:
        theirs = await fail(litellm, provider.base_url, stream, **more)
        our = await fail(ours, provider.base_url, stream, **more)
        assert len(provider.requests) == 2
    assert type(theirs).__name__ == failure.theirs
    assert type(our).__name__ == (failure.ours or failure.theirs)
    assert isinstance(our, getattr(ours, failure.caught_as or failure.theirs))
    assert failure_of(our) == failure_of(theirs)


@asynccontextmanager
async def refusing(status: int, **error: Any) -> AsyncIterator[str]:
    """A provider that answers with one error."""

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"type": "invalid_request_error", "param": None, **error}}, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "words",
    [
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        "Your request was rejected as a result of the safety system.",
    ],
)
async def test_what_is_refused_for_its_content_is_litellms_error(words: str, stream: bool) -> None:
    async with refusing(400, message=words, code="invalid_prompt") as url:
        theirs, our = await fail(litellm, url, stream), await fail(ours, url, stream)
    assert type(theirs).__name__ == type(our).__name__ == "ContentPolicyViolationError"
    assert failure_of(our) == failure_of(theirs)
    assert words in str(theirs)
    assert words in str(our)


async def test_a_provider_that_is_not_there_has_litellms_status() -> None:
    url = "http://127.0.0.1:1/v1"
    theirs, our = await fail(litellm, url, False), await fail(ours, url, False)
    # litellm has a name for it, and calls it the server's failure.
    assert (type(theirs).__name__, type(our).__name__) == ("InternalServerError", "APIConnectionError")
    assert failure_of(our) == failure_of(theirs)


async def test_an_answer_that_breaks_off_is_an_error_in_both() -> None:
    script = Script(source=Text("one two three four five six"), faults=(parse_fault("cut=3"),))
    async with running(script) as provider:
        theirs = await fail(litellm, provider.base_url, True)
        our = await fail(ours, provider.base_url, True)
    # litellm's is one for its router, which means to go on.
    assert (type(theirs).__name__, type(our).__name__) == ("MidStreamFallbackError", "APIConnectionError")
    assert failure_of(our) == failure_of(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_exceptions_are_named_and_placed_as_litellms(name: str) -> None:
    theirs, our = getattr(litellm.exceptions, name), getattr(ours.exceptions, name)
    assert getattr(ours, name) is our
    above = {cls.__name__ for cls in theirs.__mro__} & set(NAMES)
    assert above <= {cls.__name__ for cls in our.__mro__}
