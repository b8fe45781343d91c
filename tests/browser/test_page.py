"""The chat at `/`, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, Text, running
from deltafan.events import Error, ReasoningDelta, RefusalDelta, ToolCallDelta, ToolResult, Usage
from deltafan.settings import RedisSettings
from tests.browser.kit import answer, events_shown, is_done, job_of, needs_browser, open_page, send, turns
from tests.conftest import StartWorker
from tests.e2e.relay_kit import HandWorker, hand_worker, running_relay

pytestmark = needs_browser


async def test_a_prompt_streams_through_a_real_worker_and_ends_with_its_numbers(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker, page: Page
) -> None:
    await start_worker()
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, "Tell me")
        await is_done(page)
        (turn,) = await turns(page)
        assert turn["text"] == provider.requests[-1].text
        await expect(page.locator(".turn .facts")).to_contain_text("tokens in")
        await expect(page.locator("#first-token")).to_contain_text("s")
        await expect(page.locator("#attempt")).to_have_text("1")
        await expect(page.locator("#stop")).to_be_hidden()
        ids = await events_shown(page, "sse")
        assert ids[0] == "1-0"
        assert await page.locator("#sse .rows .type").last.text_content() == "done"


async def test_the_stop_button_and_escape_end_the_model_s_stream(
    queue: AsyncQueue, start_worker: StartWorker, page: Page
) -> None:
    async with running(Script(source=Text("word " * 100_000), rate=50)) as endless:
        await start_worker(endless)
        async with running_relay(queue) as relay:
            await page.goto(relay.url)
            for number, stop in enumerate((page.click("#stop"), page.keyboard.press("Escape")), start=1):
                await send(page)
                await expect(page.locator(".turn")).to_have_count(number)
                await expect(answer(page)).to_contain_text("word word")
                await stop
                await is_done(page, "stopped")
                await endless.until(lambda requests: requests[-1].client_closed)
                await expect(page.locator(".turn").last).to_contain_text("You stopped this answer.")


async def test_a_reload_in_mid_stream_goes_on_and_misses_nothing(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, "Tell me")
        work = await worker.take()
        await work.say(ReasoningDelta(text="Hm."), "one ", "two ")
        await expect(answer(page)).to_have_text("one two")
        await page.reload()
        await work.say("three ")
        await expect(answer(page)).to_have_text("one two three")
        await expect(page.locator(".prompt")).to_have_text("Tell me")
        await expect(page.locator(".reasoning p")).to_have_text("Hm.")
        await work.say("four", Usage(prompt_tokens=1, completion_tokens=4, total_tokens=5, source="reported"))
        await work.finish()
        await is_done(page)
        assert (await turns(page))[-1]["text"] == "one two three four"
        await page.reload()
        await expect(answer(page)).to_have_text("one two three four")
        await expect(page.locator(".facts")).to_contain_text("1 tokens in, 4 out")


async def test_a_conversation_sends_what_was_said_before_and_survives_a_reload(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async def ask(prompt: str) -> list[dict[str, Any]]:
        await send(page, prompt)
        work = await worker.take()
        await work.say("Answer *one*.")
        await work.finish()
        await is_done(page)
        await expect(page.locator(".turn footer").last).to_be_visible()
        return work.claim.spec.chat()

    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await ask("Question 1")
        assert await ask("Question 2") == [
            {"role": "user", "content": "Question 1"},
            {"role": "assistant", "content": "Answer *one*."},
            {"role": "user", "content": "Question 2"},
        ]
        await page.reload()
        await is_done(page)
        await expect(page.locator(".prompt")).to_have_text(["Question 1", "Question 2"])
        await expect(page.locator(".turn .text")).to_have_text(["Answer one.", "Answer one."])
        await page.click("#new")
        await expect(page.locator(".turn")).to_have_count(0)
        assert len(await ask("Question 3")) == 1


async def test_regenerate_asks_the_last_prompt_again_and_replaces_its_answer(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, "Say")
        first = await worker.take()
        await first.say("first")
        await first.finish()
        await is_done(page)
        await page.get_by_role("button", name="Regenerate").click()
        second = await worker.take()
        assert second.id != first.id
        assert second.claim.spec.chat() == [{"role": "user", "content": "Say"}]
        await second.say("second")
        await second.finish()
        await expect(page.locator(".turn .text")).to_have_text(["second"])
        assert await job_of(page) == second.id


async def test_the_back_button_shows_the_answer_before(queue: AsyncQueue, worker: HandWorker, page: Page) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        for text in ("first", "second"):
            await send(page, text)
            work = await worker.take()
            await work.say(text)
            await work.finish()
            await expect(answer(page)).to_have_text(text)
            await is_done(page)
        await page.go_back()
        await expect(page.locator(".turn .text")).to_have_text(["first"])
        await page.go_forward()
        await expect(page.locator(".turn .text")).to_have_text(["first", "second"])


async def test_a_lost_connection_is_made_again_from_the_last_id(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    asked: list[str | None] = []
    page.on("request", lambda r: asked.append(r.headers.get("last-event-id")) if "/events" in r.url else None)
    async with running_relay(queue, reconnect=0.2) as relay:
        port = int(relay.url.rpartition(":")[2])
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        await work.say("one ")
        await expect(answer(page)).to_have_text("one")
    await is_done(page, "reconnecting")
    await work.say("two ")
    async with AsyncQueue(redis_settings) as other, running_relay(other, port=port):
        await expect(answer(page)).to_have_text("one two")
        await is_done(page, "streaming")
        await work.finish()
        await is_done(page)
    assert asked[0] is None
    assert set(asked[1:]) == {"1-1"}


async def test_a_relay_that_falls_silent_is_left_for_a_new_connection(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue, reconnect=0.1, heartbeat=60) as relay:
        # The page is told of a heartbeat each 0.2 s, and this relay sends none within the test.
        async def hurried(route: Route) -> None:
            html = (await (await route.fetch()).text()).replace('data-heartbeat="60"', 'data-heartbeat="0.2"')
            await route.fulfill(body=html, content_type="text/html")

        await page.route("**/", hurried)
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        await work.say("one ")
        await expect(answer(page)).to_have_text("one")
        async with page.expect_request(lambda r: r.headers.get("last-event-id") == "1-1"):
            pass
        await work.say("two")
        await work.finish()
        await expect(answer(page)).to_have_text("one two")


async def test_a_new_attempt_begins_the_text_anew_and_a_continued_one_goes_on_and_the_page_says_which(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        for on_takeover, expected, words in (
            ("restart", "good", "the answer begins anew"),
            ("continue", "bad good", "goes on from the text so far"),
        ):
            job = await queue.enqueue(model="m", prompt="p", on_takeover=on_takeover)
            await page.goto(f"{relay.url}/#job={job.id}")
            first = await worker.take()
            await first.say("bad ")
            await expect(answer(page)).to_have_text("bad")
            await worker.claims.release(first.claim, b"")
            async with hand_worker(redis_settings, "second") as second:
                work = await second.take()
                await work.say("good")
                await work.finish()
            await is_done(page)
            await expect(answer(page)).to_have_text(expected)
            await expect(page.locator(".turn .note")).to_contain_text(words)
            await expect(page.locator("#attempt")).to_have_text("2")


async def test_tool_calls_refusals_and_errors_are_shown_as_they_come(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        await work.say(ToolCallDelta(index=0, call_id="c1", name="weather", arguments='{"city":'))
        call = page.locator(".tools li")
        await expect(call).to_have_text('Calls weather{"city":')
        await work.say(
            ToolCallDelta(index=0, arguments='"Rome"}'), ToolResult(call_id="c1", name="weather", result="sun")
        )
        await expect(call.locator("code").first).to_have_text('{"city":"Rome"}')
        await expect(call.locator(".result")).to_have_text("sun")
        await work.say(RefusalDelta(text="I may "), RefusalDelta(text="not."))
        await expect(page.locator(".refusal")).to_have_text("I may not.")
        await work.say(Error(code="rate_limit", message="slow down", retryable=True, will_retry=True))
        await expect(page.locator(".note[data-kind=warn]")).to_contain_text("Trying again")
        await is_done(page, "trying again")
        await work.say(Error(code="context_length", message="8,192 tokens at most"))
        await work.finish("failed", "error")
        await is_done(page, "failed")
        note = page.locator(".note[data-kind=bad]:visible")
        await expect(note).to_have_text("The conversation is too long for this model. “8,192 tokens at most”")


async def test_the_key_is_asked_for_only_where_the_relay_needs_one_and_kept_for_the_session(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await expect(page.locator("#key-row")).to_be_hidden()
    async with running_relay(queue, api_keys=("good-key-123",)) as relay:
        await page.goto(relay.url)
        await send(page)
        await expect(page.locator("#notice")).to_be_visible()
        await page.fill("#key", "good-key-123")
        await send(page)
        work = await worker.take()
        await work.say("Hi")
        await expect(answer(page)).to_have_text("Hi")
        await page.reload()
        await expect(answer(page)).to_have_text("Hi")
        await work.finish()
        await is_done(page)
        assert await page.evaluate("Object.values(localStorage).join()") == "scripted"


async def test_a_job_that_is_not_there_is_told_and_a_new_prompt_works(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(f"{relay.url}/#job=0-nosuchjob")
        await expect(page.locator("#notice")).to_contain_text("No job")
        await send(page)
        work = await worker.take()
        await work.finish()
        await is_done(page)
        await expect(page.locator("#notice")).to_be_hidden()


async def test_a_job_of_another_tenant_is_no_job_here(
    queue: AsyncQueue, redis_settings: RedisSettings, page: Page
) -> None:
    async with AsyncQueue(redis_settings, tenant="other") as others:
        job = await others.enqueue(model="m", prompt="their secret")
        async with running_relay(queue, api_keys=("mine=my-key-0123", "other=their-key-0")) as relay:
            await page.goto(relay.url)
            await page.fill("#key", "my-key-0123")
            await page.goto(f"{relay.url}/#job={job.id}")
            await expect(page.locator("#notice")).to_contain_text("No job")
            await expect(page.locator(".turn")).to_have_count(0)


async def test_a_long_answer_keeps_few_rows_and_is_whole(queue: AsyncQueue, worker: HandWorker, page: Page) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        words = [f"word{number} " for number in range(2000)]
        for start in range(0, len(words), 100):
            await work.say(*words[start : start + 100])
        await work.finish()
        await is_done(page)
        assert (await turns(page))[-1]["text"] == "".join(words)
        assert 0 < await page.locator("#sse .rows li").count() <= 300


async def test_the_end_stays_in_view_until_the_reader_scrolls_up(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        for number in range(60):
            await work.say(f"Paragraph {number}\n\n")
        await expect(page.get_by_text("Paragraph 59", exact=True)).to_be_in_viewport()
        await expect(page.locator("#sse .rows li").last).to_be_in_viewport()
        await page.locator("#transcript").evaluate("node => node.scrollTo(0, 100)")
        await expect(page.get_by_text("Paragraph 59", exact=True)).not_to_be_in_viewport()
        await work.say("Paragraph 60\n\n")
        await work.finish()
        await is_done(page)
        assert await page.locator("#transcript").evaluate("node => node.scrollTop") == 100
        await expect(page.locator("#sse .rows li").last).to_be_in_viewport()
        await send(page)
        await expect(page.locator(".prompt").last).to_be_in_viewport()


async def test_everything_can_be_done_with_the_keyboard_and_states_are_announced(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await page.fill("#model", "scripted")
        await page.focus("#prompt")
        await page.keyboard.type("Hello")
        await page.keyboard.press("Control+Enter")
        work = await worker.take()
        await work.say("Hi")
        await expect(page.get_by_role("status").first).to_have_text("streaming")
        assert await page.locator(".turn").get_attribute("aria-busy") == "true"
        await work.finish()
        await is_done(page)
        names = await page.evaluate(
            "[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent)"
            ".map(e => e.textContent || e.labels?.[0]?.textContent).filter(name => !name?.trim())"
        )
        assert names == []


async def test_the_page_fits_a_phone_and_shows_its_state_there(
    queue: AsyncQueue, worker: HandWorker, browser: Browser
) -> None:
    async with (
        open_page(browser, viewport={"width": 360, "height": 640}, has_touch=True) as page,
        running_relay(queue) as relay,
    ):
        await page.goto(relay.url)
        await send(page, "x" * 500)
        work = await worker.take()
        await work.say(
            "y" * 2000 + "\n\n```\n" + "z" * 500 + "\n```\n\n| a | b |\n|---|---|\n| " + "w" * 200 + " | 1 |\n"
        )
        await work.finish()
        await is_done(page)
        await expect(page.locator("#state")).to_be_in_viewport()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await page.get_by_role("button", name="Underneath").click()
        await expect(page.locator("#sse .rows li").last).to_be_in_viewport()
        await expect(page.locator("#state")).to_be_in_viewport()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_a_job_that_redis_has_lost_stands_still_and_says_so(
    queue: AsyncQueue, worker: HandWorker, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafan.broker.hub.AUDIT_INTERVAL", 0.1)
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        await (await worker.take()).say("so far")
        await expect(page.locator(".turn .text.writing")).to_have_text("so far")
        await queue.connections.commands.flushall()
        await is_done(page, "lost")
        await expect(page.locator(".turn .note")).to_have_text("Redis has lost the job.")
        await expect(page.locator(".turn .writing")).to_have_count(0)
        await expect(page.locator("#stop")).to_be_hidden()
        await page.reload()
        await expect(answer(page)).to_have_text("so far")


async def test_silence_in_mid_answer_is_told_until_the_next_word(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        work = await worker.take()
        await work.say("one ")
        await is_done(page, "streaming")
        await is_done(page, "waiting for news")
        assert await page.locator("#state").get_attribute("data-state") == "quiet"
        await work.say("two")
        await is_done(page, "streaming")
        await work.finish()
        await is_done(page)
