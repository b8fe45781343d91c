"""The dashboard at `/jobs`, in a real browser."""

from __future__ import annotations

from playwright.async_api import Browser, Page, expect

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.provider import Script, parse_fault, running
from deltafan.devserver.provider.source import Text
from tests.browser.kit import answer, needs_browser, open_page
from tests.conftest import StartWorker
from tests.e2e.relay_kit import HandWorker, running_relay

pytestmark = needs_browser


async def test_numbers_are_live_and_a_job_can_be_watched_from_there(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(f"{relay.url}/jobs")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("#waiting")).to_have_text("0")
        await expect(page.locator("#no-jobs")).to_be_visible()
        for _ in range(3):
            await queue.enqueue(model="some-model", prompt="p")
        await expect(page.locator("#waiting")).to_have_text("3")
        work = await worker.take()
        await work.say("Hi there")
        await expect(page.locator("#running")).to_have_text("1")
        await expect(page.locator("#waiting")).to_have_text("2")
        rows = page.locator("#jobs tr")
        await expect(rows).to_have_count(3)
        mine = rows.filter(has_text="streaming")
        await expect(mine).to_contain_text("some-model")
        await expect(page.locator("#plots .values").nth(1)).to_have_text("2 waiting1 running")
        assert "L" in (await page.locator("#plots .line").nth(2).get_attribute("d") or "")
        link = mine.get_by_role("link")
        await link.focus()
        await work.say(" again")
        await queue.enqueue(model="another-model", prompt="p")
        await expect(rows).to_have_count(4)
        await expect(link).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(answer(page)).to_have_text("Hi there again")
        await work.finish()
        await expect(page.locator("#state")).to_have_text("done")


async def test_a_dead_letter_is_shown_with_its_reason_and_retried_and_dropped(
    queue: AsyncQueue, start_worker: StartWorker, page: Page
) -> None:
    broken = Script(faults=(parse_fault("bad_request"),))
    async with running(broken) as provider, running_relay(queue) as relay:
        await start_worker(provider)
        job = [await queue.enqueue(model="m", prompt="p") for _ in range(2)][1]
        await page.goto(f"{relay.url}/jobs")
        rows = page.locator("#dead tr")
        await expect(rows).to_have_count(2)
        await expect(page.locator("#dead-count")).to_have_text("2")
        await expect(rows.first).to_contain_text("bad_request")
        await page.get_by_role("button", name=f"Drop {job.id}").click()
        await expect(rows).to_have_count(1)
        await expect(page.locator("#dead-count")).to_have_text("1")
        await page.get_by_role("button", name="Retry").click()
        await expect(page.locator("#jobs tr")).to_have_count(3)
        await expect(rows).to_have_count(1)  # it failed again, as a new job
        found = (await queue.jobs()).jobs[0]
        assert found.retry_of is not None
        await expect(rows.first.get_by_role("link")).to_have_attribute("title", found.id)


async def test_a_retried_job_succeeds_and_the_table_is_empty(
    queue: AsyncQueue, start_worker: StartWorker, page: Page
) -> None:
    script = Script(source=Text("All is well."), faults=(parse_fault("bad_request*1"),))
    async with running(script) as provider, running_relay(queue) as relay:
        await start_worker(provider)
        await queue.enqueue(model="m", prompt="p")
        await page.goto(f"{relay.url}/jobs")
        await page.get_by_role("button", name="Retry").click()
        await expect(page.locator("#no-dead")).to_be_visible()
        await expect(page.locator("#jobs tr").first).to_contain_text("done")


async def test_the_dashboard_asks_for_a_key_with_the_right_admin(queue: AsyncQueue, page: Page) -> None:
    async with running_relay(queue, api_keys=("default=admin-key-1", "default:read=reader-key-1")) as relay:
        await page.goto(f"{relay.url}/jobs")
        await expect(page.locator("#state")).to_have_text("refused")
        await page.fill("#key", "reader-key-1")
        await page.keyboard.press("Tab")
        await expect(page.locator("#notice")).to_contain_text("right to admin")
        await page.fill("#key", "admin-key-1")
        await page.keyboard.press("Tab")
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("#notice")).to_be_hidden()


async def test_a_relay_that_went_away_is_told_and_found_again(queue: AsyncQueue, page: Page) -> None:
    async with running_relay(queue) as relay:
        port = int(relay.url.rpartition(":")[2])
        await page.goto(f"{relay.url}/jobs")
        await expect(page.locator("#state")).to_have_text("live")
    await expect(page.locator("#state")).to_have_text("reconnecting")
    async with running_relay(queue, port=port):
        await expect(page.locator("#state")).to_have_text("live")


async def test_the_dashboard_fits_a_phone(queue: AsyncQueue, worker: HandWorker, browser: Browser) -> None:
    async with open_page(browser, viewport={"width": 360, "height": 640}) as page, running_relay(queue) as relay:
        await queue.enqueue(model="m" * 200, prompt="p", queue="q" * 60)
        await page.goto(f"{relay.url}/jobs")
        await expect(page.locator("#jobs tr")).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
