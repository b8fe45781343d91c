"""The page at `/`, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, Route, async_playwright, expect

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Provider, Script, Text, running
from deltafan.events import Error, ReasoningDelta, ToolCallDelta, Usage
from deltafan.settings import RedisSettings
from tests.conftest import StartWorker
from tests.e2e.relay_kit import HandWorker, hand_worker, running_relay

CHROMIUM = shutil.which("chromium-headless-shell")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium-headless-shell on the PATH")


@pytest.fixture
async def worker(redis_settings: RedisSettings) -> AsyncIterator[HandWorker]:
    async with hand_worker(redis_settings) as worker:
        yield worker


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page that may not log an error of its own: a refused policy or a broken script fails the test."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda line: broken.append(line.text) if "Content Security" in line.text else None)
        yield page
        await browser.close()
        assert broken == []


async def send(page: Page, prompt: str = "Hello") -> None:
    await page.fill("#model", "scripted")
    await page.fill("#prompt", prompt)
    await page.click("#send")


async def test_a_prompt_streams_through_a_real_worker_and_ends_with_its_usage(
    queue: AsyncQueue, provider: Provider, start_worker: StartWorker, page: Page
) -> None:
    await start_worker()
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page)
        await expect(page.locator("#state")).to_have_text("done")
        assert await page.text_content("#text") == provider.requests[-1].text
        facts = await page.inner_text("#facts")
        assert "tokens" in facts
        assert "first token" in facts
        await expect(page.locator("#stop")).to_be_hidden()


async def test_the_stop_button_ends_the_model_s_stream(
    queue: AsyncQueue, start_worker: StartWorker, page: Page
) -> None:
    async with running(Script(source=Text("word " * 100_000), rate=50)) as endless:
        await start_worker(endless)
        async with running_relay(queue) as relay:
            await page.goto(relay.url)
            await send(page)
            await expect(page.locator("#text")).to_contain_text("word word")
            await page.click("#stop")
            await expect(page.locator("#state")).to_have_text("cancelled")
            await endless.until(lambda requests: requests[-1].client_closed)


async def test_a_reload_in_mid_stream_goes_on_and_misses_nothing(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, "Tell me")
        work = await worker.take()
        await work.say(ReasoningDelta(text="Hm."), "one ", "two ")
        await expect(page.locator("#text")).to_have_text("one two ", use_inner_text=False)
        await page.reload()
        await work.say("three ")
        await expect(page.locator("#text")).to_have_text("one two three ")
        await expect(page.locator("#prompt-shown")).to_have_text("Tell me")
        await expect(page.locator("#reasoning")).to_have_text("Hm.")
        await work.say("four", Usage(prompt_tokens=1, completion_tokens=4, total_tokens=5, source="reported"))
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")
        await page.reload()
        await expect(page.locator("#text")).to_have_text("one two three four")
        await expect(page.locator("#facts")).to_contain_text("1 in, 4 out")


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
        await expect(page.locator("#text")).to_have_text("one ")
    await expect(page.locator("#connection")).to_have_text("reconnecting…")
    await work.say("two ")
    async with AsyncQueue(redis_settings) as other, running_relay(other, port=port):
        await expect(page.locator("#text")).to_have_text("one two ")
        await expect(page.locator("#connection")).to_be_hidden()
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")
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
        await expect(page.locator("#text")).to_have_text("one ")
        async with page.expect_request(lambda r: r.headers.get("last-event-id") == "1-1"):
            pass
        await work.say("two")
        await work.finish()
        await expect(page.locator("#text")).to_have_text("one two")


async def test_a_new_attempt_begins_the_text_anew_and_a_continued_one_goes_on(
    redis_settings: RedisSettings, queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        for on_takeover, expected in (("restart", "good"), ("continue", "bad good")):
            job = await queue.enqueue(model="m", prompt="p", on_takeover=on_takeover)
            await page.goto(f"{relay.url}/#job={job.id}")
            first = await worker.take()
            await first.say("bad ")
            await expect(page.locator("#text")).to_have_text("bad ")
            await worker.claims.release(first.claim, b"")
            async with hand_worker(redis_settings, "second") as second:
                work = await second.take()
                await work.say("good")
                await work.finish()
            await expect(page.locator("#state")).to_have_text("done")
            await expect(page.locator("#text")).to_have_text(expected)


async def test_what_the_model_says_is_shown_as_text_and_never_as_html(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, evil)
        work = await worker.take()
        await work.say(evil, ReasoningDelta(text=evil))
        await work.say(ToolCallDelta(index=0, call_id="c", name=evil), ToolCallDelta(index=0, arguments=evil))
        await work.say(Error(code="server_error", message=evil))
        await work.finish("failed", "error")
        await expect(page.locator("#state")).to_have_text("failed")
        for place in ("#prompt-shown", "#text", "#reasoning", "#tools strong", "#tools code", "#error"):
            assert await page.text_content(place) == evil
        assert await page.locator("article img, article script").count() == 0


async def test_the_key_is_asked_for_only_where_the_relay_needs_one_and_kept_for_the_session(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await expect(page.locator("#key-row")).to_be_hidden()
    async with running_relay(queue, api_keys=("good-key-123",)) as relay:
        await page.goto(relay.url)
        await send(page)
        await expect(page.locator("#notice")).to_contain_text("the API key is missing")
        await page.fill("#key", "good-key-123")
        await send(page)
        work = await worker.take()
        await work.say("Hi")
        await expect(page.locator("#text")).to_have_text("Hi")
        await page.reload()
        await expect(page.locator("#text")).to_have_text("Hi")
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")


async def test_a_job_that_is_not_there_is_told_and_a_new_prompt_works(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(f"{relay.url}/#job=0-nosuchjob")
        await expect(page.locator("#notice")).to_contain_text("no job")
        await send(page)
        work = await worker.take()
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")
        await expect(page.locator("#notice")).to_be_hidden()


async def test_the_page_fits_a_phone(queue: AsyncQueue, worker: HandWorker, page: Page) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await send(page, "x" * 500)
        work = await worker.take()
        await work.say("y" * 2000)
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
