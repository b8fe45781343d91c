"""The router, against deployments that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from deltafan.errors import CompletionError, ConfigurationError
from deltafan.events import Done, Event, Meta, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm import Request
from deltafan.llm.router import Deployment, Failover, Router, Rules
from deltafan.llm.router.members import MAX_UNLISTED
from deltafan.llm.seam import Started
from deltafan.transcript import Transcript

REQUEST = Request("m", [{"role": "user", "content": "Hi"}])
USED = Usage(5, 5, 10, cached_tokens=0, reasoning_tokens=0, cost_usd=1.0, source="reported")
Answer = list[Event | CompletionError]


class Model:
    """Completions that give these answers, one after the other, the last for ever; an error in an answer is raised."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.closed = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            for step in answer:
                if isinstance(step, CompletionError):
                    raise replace_error(step)
                yield step
        finally:
            self.closed += 1


def replace_error(error: CompletionError) -> CompletionError:
    return CompletionError(error.code, error.message, retry_after=error.retry_after)


def says(text: str) -> Answer:
    return [Started(provider="p", model=text), TextDelta(text), USED, Done("stop")]


def fails(code: str = "server_error", *before: Event, retry_after: float | None = None) -> Answer:
    return [*before, CompletionError(code, f"it is {code}", retry_after=retry_after)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def router(*models: Model | tuple[str, Model], **options: Any) -> Router:
    """Models are deployments of `m`; a pair names another."""
    deployments = [
        Deployment("openai/gpt", *(("m", one) if isinstance(one, Model) else one), id=f"d{place}")
        for place, one in enumerate(models)
    ]
    # Weight 0 is asked only when the others cannot: the order of the tests is that of the arguments.
    deployments = [replace(one, weight=0.0 if place else 1.0) for place, one in enumerate(deployments)]
    return Router(deployments, **options)


async def collect(ring: Router, request: Request = REQUEST) -> list[Event]:
    async with aclosing(ring.stream(request)) as events:
        return [event async for event in events]


def amount_to(events: list[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript


# before the first delta


@pytest.mark.parametrize(
    "code",
    [
        "connection",
        "server_error",
        "malformed_stream",
        "timeout_first_token",
        "timeout_stall",
        "rate_limit",
        "quota",
        "authentication",
        "permission",
        "model_not_found",
    ],
)
async def test_before_the_first_delta_another_deployment_answers_and_nobody_notices(code: str) -> None:
    bad, good = Model(fails(code)), Model(says("good"))
    told: list[Failover] = []
    events = await collect(router(bad, good, on_failover=told.append))
    assert events == [Started(provider="p", model="good", deployment="d1"), TextDelta("good"), USED, Done("stop")]
    assert [(one.deployment, one.error.code, one.to, one.visible) for one in told] == [("d0", code, "d1", False)]
    assert good.requests[0].model == "openai/gpt"


@pytest.mark.parametrize("code", ["bad_request", "timeout_total", "cancelled", "expired"])
async def test_a_request_that_is_wrong_everywhere_asks_nobody_else(code: str) -> None:
    bad, good = Model(fails(code)), Model(says("good"))
    with pytest.raises(CompletionError) as caught:
        await collect(router(bad, ("n", good), fallbacks={"m": ["n"]}))
    assert caught.value.code == code
    assert good.requests == []


async def test_a_stream_without_an_end_is_a_failure() -> None:
    assert amount_to(await collect(router(Model([]), Model(says("good"))))).text == "good"


async def test_fallbacks_are_asked_in_order_after_all_deployments_of_the_name() -> None:
    order: list[str] = []
    models = [Model(fails()) for _ in range(4)]
    ring = router(
        models[0],
        models[1],
        ("n", models[2]),
        ("o", models[3]),
        fallbacks={"m": ["o", "n"]},
        on_failover=lambda f: order.append(f.deployment),
    )
    with pytest.raises(CompletionError):
        await collect(ring)
    assert order == ["d0", "d1", "d3", "d2"]


async def test_a_requests_own_fallbacks_take_the_place_of_the_routers() -> None:
    n, o = Model(says("n")), Model(says("o"))
    ring = router(Model(fails()), ("n", n), ("o", o), fallbacks={"m": ["n"]})
    request = replace(REQUEST, options={"fallbacks": ["o"], "ttl": 5})
    assert amount_to(await collect(ring, request)).text == "o"
    assert o.requests[0].options == {"ttl": 5}, "what the router has been told is not for a router further in"


async def test_a_failure_that_may_pass_is_raised_before_one_that_cannot() -> None:
    ring = router(Model(fails("authentication")), Model(fails("rate_limit")), Model(fails("permission")))
    with pytest.raises(CompletionError) as caught:
        await collect(ring)
    assert caught.value.code == "rate_limit"
    ring = router(Model(fails("authentication")), Model(fails("permission")))
    with pytest.raises(CompletionError) as caught:
        await collect(ring)
    assert caught.value.code == "authentication"


async def test_a_prompt_that_is_too_long_goes_to_other_models_only() -> None:
    same, longer = Model(says("same")), Model(says("longer"))
    ring = router(
        Model(fails("context_length")),
        same,
        ("n", Model(says("n"))),
        ("long", longer),
        fallbacks={"m": ["n"]},
        context_fallbacks={"m": ["long"]},
    )
    assert amount_to(await collect(ring)).text == "longer"
    assert same.requests == []
    ring = router(Model(fails("context_length")), same, ("n", Model(says("n"))), fallbacks={"m": ["n"]})
    assert amount_to(await collect(ring)).text == "n"
    with pytest.raises(CompletionError, match="it is context_length"):
        await collect(router(Model(fails("context_length")), same))


async def test_what_a_content_filter_refused_or_cut_off_goes_to_its_own_fallbacks() -> None:
    cut: Answer = [USED, Done("content_filter")]
    for answer in (fails("content_filter"), cut):
        ring = router(Model(answer), ("n", Model(says("n"))), content_fallbacks={"m": ["n"]})
        events = await collect(ring)
        assert amount_to(events).text == "n"
        assert sum(isinstance(event, Usage) for event in events) == 1
    assert (await collect(router(Model(cut), ("n", Model(says("n"))), fallbacks={"m": ["n"]})))[-1] == Done(
        "content_filter"
    )


async def test_a_name_that_nobody_has_is_told_with_those_that_there_are() -> None:
    ring = router(Model(says("x")), ("n", Model(says("n"))))
    with pytest.raises(CompletionError, match="no deployment has the name 'q'; there is: m, n") as caught:
        await collect(ring, replace(REQUEST, model="q"))
    assert caught.value.code == "model_not_found"
    with pytest.raises(CompletionError, match="fallbacks: no deployment has the name 'q'"):
        await collect(ring, replace(REQUEST, options={"fallbacks": ["q"]}))


@pytest.mark.parametrize("options", [{"fallbacks": "n"}, {"fallbacks": [1]}, {"mid_stream": "maybe"}])
async def test_options_that_are_none_are_a_bad_request(options: dict[str, Any]) -> None:
    with pytest.raises(CompletionError, match=next(iter(options))) as caught:
        await collect(router(Model(says("x"))), replace(REQUEST, options=options))
    assert caught.value.code == "bad_request"


async def test_a_name_that_is_not_listed_is_asked_as_it_is_where_that_is_allowed() -> None:
    inner = Model(says("any"))
    ring = Router([], completions=inner, unlisted=True)
    events = await collect(ring, replace(REQUEST, model="groq/llama"))
    assert amount_to(events).text == "any"
    assert inner.requests[0].model == "groq/llama"
    for place in range(MAX_UNLISTED + 10):
        await collect(ring, replace(REQUEST, model=f"model-{place}"))
    assert len(ring.status()) == MAX_UNLISTED


async def test_the_whole_timeout_bounds_all_deployments_together() -> None:
    class Slow(Model):
        async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            self.requests.append(request)
            await asyncio.sleep(0.05)
            raise CompletionError("timeout_first_token", "slow")
            yield

    slow, good = Slow(says("")), Model(says("good"))
    with pytest.raises(CompletionError, match="slow"):
        await collect(router(slow, good), replace(REQUEST, timeout=0.03))
    assert good.requests == []
    await collect(router(slow, good), replace(REQUEST, timeout=9.0, stall_timeout=3.0))
    assert good.requests[0].timeout is not None
    assert good.requests[0].timeout < 9.0
    assert good.requests[0].stall_timeout == 3.0


# after it


async def test_after_the_first_delta_the_next_begins_anew_and_says_so() -> None:
    bad, good = Model(fails("connection", TextDelta("half an "))), Model(says("answer"))
    events = await collect(router(bad, good))
    kinds = [type(event) for event in events]
    assert kinds == [TextDelta, Meta, Started, TextDelta, Usage, Done]
    meta = events[1]
    assert isinstance(meta, Meta)
    assert (meta.restart, meta.continued, meta.model, meta.provider) == (True, False, "answer", "p")
    assert meta.created > 1e12
    assert amount_to(events).text == "answer"
    assert good.requests[0].prefix == ""


async def test_with_continue_the_next_goes_on_from_the_text() -> None:
    bad, good = (
        Model(fails("connection", ReasoningDelta("hm"), TextDelta("half "), TextDelta("an "))),
        Model(says("answer")),
    )
    ring = Router(
        [Deployment("openai/gpt", "m", bad), Deployment("vllm/llama", "n", good)],
        fallbacks={"m": ["n"]},
        mid_stream="continue",
    )
    events = await collect(ring)
    [meta] = [event for event in events if isinstance(event, Meta)]
    assert (meta.restart, meta.continued) == (False, True)
    assert good.requests[0].prefix == "half an "
    assert amount_to(events).text == "half an answer"
    assert amount_to(events).reasoning == "hm"


@pytest.mark.parametrize(
    ("said", "prefill"),
    [
        ([TextDelta("half")], False),
        ([TextDelta("half"), ToolCallDelta(0, "{", "id", "f")], True),
        ([TextDelta("half"), TextDelta("half", choice=1)], True),
        ([ReasoningDelta("hm")], True),
    ],
)
async def test_what_cannot_be_gone_on_from_begins_anew(said: list[Event], prefill: bool) -> None:
    bad, good = Model(fails("connection", *said)), Model(says("whole"))
    ring = Router(
        [Deployment("x", "m", bad), Deployment("x", "n", good, prefill=prefill)],
        fallbacks={"m": ["n"]},
        mid_stream="continue",
    )
    events = await collect(ring)
    assert [event.restart for event in events if isinstance(event, Meta)] == [True]
    assert (good.requests[0].prefix, amount_to(events).text) == ("", "whole")


async def test_with_fail_the_failure_stands() -> None:
    good = Model(says("whole"))
    ring = router(Model(fails("connection", TextDelta("half"))), good)
    with pytest.raises(CompletionError, match="it is connection"):
        await collect(ring, replace(REQUEST, options={"mid_stream": "fail"}))
    assert good.requests == []
    # A failure that nobody has seen is another matter.
    silent = router(Model(fails("connection", Started())), good, mid_stream="fail")
    assert amount_to(await collect(silent)).text == "whole"


async def test_a_turnover_that_fails_in_silence_is_never_told() -> None:
    ring = router(Model(fails("connection", TextDelta("half"))), Model(fails("rate_limit")), Model(says("whole")))
    events = await collect(ring)
    assert [event.type for event in events].count("meta") == 1
    assert amount_to(events).text == "whole"
    ring = router(Model(fails("connection", TextDelta("half"))), Model(fails("rate_limit")))
    seen: list[Event] = []

    async def watch() -> None:
        async with aclosing(ring.stream(REQUEST)) as stream:
            async for event in stream:
                seen.append(event)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(CompletionError):
        await watch()
    assert [event.type for event in seen] == ["text_delta"], "the half answer stands, when there is no better one"


async def test_a_continued_answer_that_fails_again_goes_on_from_all_of_the_text() -> None:
    first = Model(fails("connection", TextDelta("one ")))
    second = Model(fails("connection", TextDelta("two ")))
    third = Model(says("three"))
    ring = Router(
        [Deployment("x", name, model, prefill=True) for name, model in (("m", first), ("n", second), ("o", third))],
        fallbacks={"m": ["n", "o"]},
        mid_stream="continue",
    )
    assert amount_to(await collect(ring)).text == "one two three"
    assert third.requests[0].prefix == "one two "


async def test_what_was_made_void_is_not_gone_on_from() -> None:
    first = Model(fails("connection", TextDelta("one "), ToolCallDelta(0, "{", "id", "f")))
    second = Model(fails("connection", TextDelta("two ")))
    third = Model(says("three"))
    ring = Router(
        [Deployment("x", name, model, prefill=True) for name, model in (("m", first), ("n", second), ("o", third))],
        fallbacks={"m": ["n", "o"]},
        mid_stream="continue",
    )
    events = await collect(ring)
    assert [(event.restart, event.continued) for event in events if isinstance(event, Meta)] == [
        (True, False),
        (False, True),
    ]
    assert third.requests[0].prefix == "two "
    assert (amount_to(events).text, amount_to(events).tool_calls) == ("two three", [])


async def test_a_given_text_that_the_next_cannot_go_on_from_is_begun_anew() -> None:
    bad, good = Model(fails()), Model(says("whole"))
    ring = Router(
        [Deployment("x", "m", bad, prefill=True), Deployment("x", "n", good, prefill=False)], fallbacks={"m": ["n"]}
    )
    events = await collect(ring, replace(REQUEST, prefix="given "))
    assert (bad.requests[0].prefix, good.requests[0].prefix) == ("given ", "")
    assert [event.restart for event in events if isinstance(event, Meta)] == [True]


async def test_usage_of_failed_requests_adds_up() -> None:
    half = Model(fails("connection", TextDelta("12345678")))
    events = await collect(router(half, Model(says("whole"))))
    [used] = [event for event in events if isinstance(event, Usage)]
    assert (used.completion_tokens, used.source) == (5 + 2, "estimated")
    assert used.prompt_tokens is not None
    assert used.prompt_tokens > 5
    with pytest.raises(CompletionError) as caught:
        await collect(router(half, half))
    assert caught.value.usage is not None
    assert caught.value.usage.completion_tokens == 4


# health


async def test_a_deployment_that_keeps_failing_is_passed_over_and_probed_later() -> None:
    clock = Clock()
    bad, good = Model(*[fails()] * 3, says("well again")), Model(says("good"))
    ring = router(bad, good, clock=clock, rules=Rules(failures=3, cooldown=30))
    for _ in range(5):
        assert amount_to(await collect(ring)).text == "good"
    assert len(bad.requests) == 3
    assert [(one.id, one.cooling) for one in ring.status()] == [("d0", 30.0), ("d1", 0.0)]
    clock.now = 30.0
    assert amount_to(await collect(ring)).text == "well again"
    assert ring.status()[0].cooling == 0.0


async def test_a_pause_that_a_provider_asks_for_is_kept() -> None:
    clock = Clock()
    busy = Model(fails("rate_limit", retry_after=8.0), says("back"))
    ring = router(busy, Model(says("other")), clock=clock)
    texts = []
    for clock.now in (0.0, 7.9, 8.0):
        texts.append(amount_to(await collect(ring)).text)
    assert texts == ["other", "other", "back"]


async def test_after_a_failure_nobody_who_cools_down_is_asked() -> None:
    bad, cool = Model(fails("server_error")), Model(fails("rate_limit", retry_after=60.0), says("too soon"))
    ring = router(bad, cool)
    for _ in range(2):
        with pytest.raises(CompletionError):
            await collect(ring)
    assert (len(bad.requests), len(cool.requests)) == (2, 1)


async def test_when_all_cool_down_one_is_asked_all_the_same() -> None:
    only = Model(fails("authentication"), says("mended"))
    ring = router(only)
    with pytest.raises(CompletionError):
        await collect(ring)
    assert amount_to(await collect(ring)).text == "mended"


async def test_a_reader_who_leaves_closes_the_deployment_and_frees_its_place() -> None:
    model = Model(says("x"))
    ring = router(model)
    async with aclosing(ring.stream(REQUEST)) as events:
        await anext(events)
        assert ring.status()[0].in_flight == 1
    assert (ring.status()[0].in_flight, model.closed) == (0, 1)


async def test_a_deployment_that_has_had_its_minute_is_passed_over() -> None:
    clock = Clock()
    small, big = Model(says("small")), Model(says("big"))
    ring = Router([Deployment("x", "m", small, rpm=2), Deployment("x", "m", big, weight=0.0)], clock=clock)
    assert [amount_to(await collect(ring)).text for _ in range(4)] == ["small", "small", "big", "big"]
    clock.now = 61.0
    assert amount_to(await collect(ring)).text == "small"
    tokens = Router([Deployment("x", "m", small, tpm=10), Deployment("x", "m", big, weight=0.0)], clock=clock)
    assert [amount_to(await collect(tokens)).text for _ in range(2)] == ["small", "big"]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Router([Deployment("x")]), "needs completions"),
        (lambda: Router([], unlisted=True), "unlisted: needs `completions`"),
        (lambda: router(Model(), fallbacks={"m": ["q"]}), "fallbacks: no deployment has the name 'q'"),
        (lambda: router(Model(), context_fallbacks={"q": ["m"]}), "context_fallbacks: no deployment"),
        (lambda: router(Model(), content_fallbacks={"m": "m"}), "content_fallbacks.*must be a list"),
        (lambda: router(Model(), strategy="best"), "strategy: must be one of weighted, least_busy"),
        (lambda: router(Model(), mid_stream="best"), "mid_stream: must be one of restart"),
        (lambda: Router([Deployment("x", completions=Model(), id="a")] * 2), "two have the id a"),
        (lambda: Deployment(""), "model must be text"),
        (lambda: Deployment("x", weight=-1), "weight must be"),
        (lambda: Deployment("x", rpm=0), "rpm must be"),
    ],
)
def test_a_router_that_cannot_work_is_refused(make: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        make()


def test_a_names_provider_and_prefill_are_those_of_its_deployments() -> None:
    inner = Model()
    models = {"vllm/a": "m", "groq/b": "m", "vllm/c": "n", "openai/d": "n"}
    ring = Router([Deployment(model, name) for model, name in models.items()], completions=inner, unlisted=True)
    assert ring.provider_of("m") == ("vllm", True)
    assert ring.provider_of("n") == ("vllm", False)
    assert ring.provider_of("groq/llama") == ("groq", True)
    assert ring.provider_of("") == ("openai", False), "of an entry that is no job yet"
    assert len(ring.status()) == 4
